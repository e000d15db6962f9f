"""Δm, the mean relative gain over single-task training (`delta_m@1`). Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping

PROTOCOL = "delta_m@1"


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> float:
    """Returns the mean relative gain over a baseline, in per cent; higher is always better.

    Δm = 100/T Σ_i ±(M_i - S_i)/S_i, with a minus where lower is better (Maninis et al., 2019, arXiv:1904.08918).

    Args:
        scores: One score per task.
        baseline: The single-task score of the same tasks.
        higher_is_better: Direction of the same tasks.

    Raises:
        ValueError: If the tasks differ, if there are none, or if a baseline is zero.

    Example:
        >>> round(delta_m({"seg": 44.0, "depth": 0.57}, {"seg": 40.0, "depth": 0.60},
        ...               {"seg": True, "depth": False}), 9)
        7.5
    """
    if not scores or set(scores) != set(baseline) or not set(scores) <= set(higher_is_better):
        raise ValueError(
            "delta_m needs the same tasks, at least one, in scores, baseline and higher_is_better. "
            f"Found {sorted(scores)}, {sorted(baseline)} and {sorted(higher_is_better)}."
        )
    zero = [task for task, value in baseline.items() if value == 0]
    if zero:
        raise ValueError(f"delta_m divides by the baseline, which is 0 for {', '.join(sorted(zero))}.")
    gains = [(scores[t] - baseline[t]) / baseline[t] * (1 if higher_is_better[t] else -1) for t in scores]
    return 100 * sum(gains) / len(gains)
