"""Ranks rows by mean Δm, with shared ranks for ties within noise, and compares them in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mtlbench.report.model import Comparison, NamedPair, Resolution, Row
from mtlbench.report.statistics import ALPHA, Difference, detectable, holm, paired, pooled_std, seeds_to_detect

REFERENCE = "uniform"
"""Reference of the second family of comparisons: does a method beat a plain sum of losses?"""


def order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Ranks rows, best first; rows without Δm follow in their original order, without a rank; the floor comes last.

    A row shares the rank above it unless it differs significantly from the first row of that rank, corrected over all
    rows below that one. Comparing it with its neighbour instead would chain small steps: of thirty methods, the best
    and one 4 points below shared a rank.
    """
    every = sorted(rows, key=lambda row: row.floor)
    below = sorted(filter(_competes, every), key=_merit)
    ranked: list[Row] = []
    while below:
        first, others = below[0], below[1:]
        tied = list(_tied(first, others))
        count = next((i for i, is_tied in enumerate(tied) if not is_tied), len(tied))
        ranked += [replace(row, rank=len(ranked) + 1) for row in below[: 1 + count]]
        below = below[1 + count :]
    return (*ranked, *(r for r in every if not _competes(r)))


def compare(rows: tuple[Row, ...], named: NamedPair | None = None) -> tuple[Comparison, ...]:
    """Compares all ranked rows with the best row and with `uniform`; Holm corrects each family.

    Args:
        rows: Rows, best first.
        named: The comparison that the suite names; it comes first if it is confirmatory.
    """
    ranked = list(filter(_competes, rows))
    best = ranked[:1]
    uniform = [r for r in ranked if r.label == REFERENCE] or [r for r in ranked if r.method == REFERENCE]
    references = list(dict.fromkeys(r.label for r in best + uniform[:1]))
    first = _pre_registered(ranked, named) if named and named.confirmatory else []
    families = [c for label in references for c in _family(ranked, label)]
    # The two references are a pair of both families; it is shown as `uniform` against the best row, and not mirrored.
    return (*first, *(c for c in families if (c.label, c.reference) != tuple(references)))


def against(rows: Iterable[Row], label: str) -> tuple[Row, ...]:
    """Adds to every row its margin over the row with a label, paired by seed."""
    every = list(rows)
    base = next((row for row in every if row.label == label), None)
    if base is None:
        return tuple(every)
    return tuple(row if row is base else replace(row, margin=paired(row.deltas, base.deltas)) for row in every)


def resolution(rows: Sequence[Row], baseline: str) -> Resolution | None:
    """Returns which differences from `uniform`, or else from the baseline, the rows can show."""
    ranked = list(filter(_competes, rows))
    bases = [r for r in ranked if REFERENCE in (r.label, r.method)] + [r for r in ranked if r.label == baseline]
    if not bases:
        return None
    base = bases[0]
    differences = [d for r in ranked if r is not base and (d := paired(r.deltas, base.deltas))]
    std = pooled_std(differences)
    if std is None:
        return None
    n = min(d.estimate.n for d in differences)
    return Resolution(base.label, std, n, detectable(std, n), seeds_to_detect(std, 1.0))


def _competes(row: Row) -> bool:
    return row.delta is not None and not row.floor


def _merit(row: Row) -> tuple[float, str]:
    return (-row.delta.mean if row.delta else 0.0), row.label


def _tied(first: Row, others: Sequence[Row]) -> Iterable[bool]:
    """Yields whether each row shares the rank of the first one."""
    differences = [paired(first.deltas, row.deltas) for row in others]
    adjusted = iter(holm([d.p for d in differences if d and d.p is not None]))
    for difference in differences:
        if difference is None:
            yield False
        elif difference.p is None:  # One seed: no measure of noise, so only equal values tie.
            yield difference.estimate.mean == 0
        else:
            yield next(adjusted) >= ALPHA


def _pre_registered(ranked: Sequence[Row], named: NamedPair) -> list[Comparison]:
    """Returns the comparison of the named pair, on the seeds that were set apart for it if there are any."""
    rows = {row.label: row for row in ranked}
    if not {named.label, named.reference} <= rows.keys():
        return []
    ours, theirs = (
        {s: v for s, v in rows[label].deltas.items() if not named.seeds or s in named.seeds}
        for label in (named.label, named.reference)
    )
    difference = paired(ours, theirs)
    if difference is None:
        return []
    p, unfounded = named.adjusted(difference.p), rows[named.reference].unfounded
    return [Comparison(named.label, named.reference, difference, p, named=True, unfounded=unfounded)]


def _family(ranked: list[Row], reference: str) -> list[Comparison]:
    base = next(r for r in ranked if r.label == reference)
    found: list[tuple[str, Difference]] = []
    for row in ranked:
        difference = paired(row.deltas, base.deltas) if row is not base else None
        if difference:
            found.append((row.label, difference))
    adjusted = iter(holm([d.p for _, d in found if d.p is not None]))
    return [
        Comparison(label, reference, d, None if d.p is None else next(adjusted), unfounded=base.unfounded)
        for label, d in found
    ]
