"""Ranks rows by mean Δm, with shared ranks for ties within noise, and compares them in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mtlbench.report.model import Comparison, Row
from mtlbench.report.statistics import Difference, holm, paired

REFERENCE = "uniform"
"""Reference of the second family of comparisons: does a method beat a plain sum of losses?"""


def order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Ranks rows, best first; rows without Δm follow in their original order, without a rank.

    A row shares the rank above it unless it differs significantly from the first row of that rank. Comparing it with
    its neighbour instead would chain small steps: of thirty methods, the best and one 4 points below shared a rank.
    """
    every = list(rows)
    ranked: list[Row] = []
    first: Row | None = None
    for place, row in enumerate(sorted((r for r in every if r.delta), key=_merit), start=1):
        if first is None or not _tied(first, row):
            first = replace(row, rank=place)
        ranked.append(replace(row, rank=first.rank))
    return (*ranked, *(r for r in every if not r.delta))


def compare(rows: tuple[Row, ...], named: Sequence[str] = ()) -> tuple[Comparison, ...]:
    """Compares all ranked rows with the best row and with `uniform`; Holm corrects each family.

    Args:
        rows: Rows, best first.
        named: Row and reference of the pre-registered comparison, which comes first.
    """
    ranked = [r for r in rows if r.delta]
    best = ranked[:1]
    uniform = [r for r in ranked if r.label == REFERENCE] or [r for r in ranked if r.method == REFERENCE]
    references = list(dict.fromkeys(r.label for r in best + uniform[:1]))
    alone = [r for r in ranked if r.label in named]
    first = [replace(c, named=True) for c in _family(alone, named[1])] if len(alone) == 2 else []
    families = [c for label in references for c in _family(ranked, label)]
    # The two references are a pair of both families; it is shown as `uniform` against the best row, and not mirrored.
    return (*first, *(c for c in families if (c.label, c.reference) != tuple(references)))


def _merit(row: Row) -> tuple[float, str]:
    return (-row.delta.mean if row.delta else 0.0), row.label


def _tied(first: Row, row: Row) -> bool:
    difference = paired(first.deltas, row.deltas)
    if difference is None:
        return False
    if difference.significant is None:  # One seed: no measure of noise, so only equal values tie.
        return difference.estimate.mean == 0
    return not difference.significant


def _family(ranked: list[Row], reference: str) -> list[Comparison]:
    base = next(r for r in ranked if r.label == reference)
    found: list[tuple[str, Difference]] = []
    for row in ranked:
        difference = paired(row.deltas, base.deltas) if row is not base else None
        if difference:
            found.append((row.label, difference))
    adjusted = iter(holm([d.p for _, d in found if d.p is not None]))
    return [Comparison(label, reference, d, None if d.p is None else next(adjusted)) for label, d in found]
