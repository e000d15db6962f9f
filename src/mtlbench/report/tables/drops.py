"""The relative loss of scores against those under another condition."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.report.model import Column

Scores = dict[tuple[str, str], dict[int, float]]
"""(task, protocol) -> seed -> score."""


def drops(scores: Scores, base: Scores, columns: Sequence[Column]) -> dict[int, float]:
    """Returns the mean relative loss by seed in per cent, paired by seed and relative to the mean of the base.

    Args:
        scores: Scores under a condition.
        base: Scores under the condition that it is compared with.
        columns: The metrics that count. A seed without one of them is left out.
    """
    keys = [c.key for c in columns]
    seeds = [s for s in base[keys[0]] if all(s in base[k] and s in scores[k] for k in keys)] if keys else []
    means = {k: sum(base[k][s] for s in seeds) / len(seeds) for k in keys} if seeds else {}
    if not all(means.values()):
        return {}
    signs = {c.key: 1 if c.higher_is_better else -1 for c in columns}
    return {s: 100 * sum(signs[k] * (base[k][s] - scores[k][s]) / means[k] for k in keys) / len(keys) for s in seeds}
