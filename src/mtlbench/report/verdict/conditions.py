"""The verdict on a table of methods by conditions: who differs from the reference under which condition."""

from __future__ import annotations

from collections.abc import Iterator

from mtlbench.report import formatting
from mtlbench.report.model import Comparison, ConditionBoard
from mtlbench.report.statistics import ALPHA
from mtlbench.report.verdict.words import SHORT, Statement, are, listed


def condition_verdict(board: ConditionBoard) -> tuple[Statement, ...]:
    """Returns a statement per condition, what stands at the floor, and what is missing."""
    return (*_uncompared(board), *_by_condition(board), *_floor(board), *_missing(board))


def _uncompared(board: ConditionBoard) -> Iterator[Statement]:
    """Yields why no methods are compared, if none are."""
    labels = [row.label for row in board.rows if not row.floor]
    if len(labels) == 1:
        yield Statement("Conditions", f"The study has one method, {labels[0]}: the tables compare its conditions.")
    elif not board.comparisons:
        yield Statement("Nothing to report yet", "No method has results under the same condition as the reference.")


def _by_condition(board: ConditionBoard) -> Iterator[Statement]:
    """Yields who is better and worse than the reference under each condition."""
    for condition in board.conditions:
        pairs = [c for name, c in board.comparisons if name == condition]
        topic = f"{condition}, against {board.reference}"
        if not pairs:
            continue
        if any(pair.unfounded for pair in pairs):
            yield Statement(
                topic,
                f"{board.reference} is itself not better than the floor here, so differences from it support no claim.",
            )
            continue
        if any(pair.p_holm is None for pair in pairs):
            yield Statement(
                topic, "One seed gives no measure of noise: no difference can be distinguished from chance."
            )
            continue
        told = [pair for pair in pairs if pair.p_holm is not None and pair.p_holm < ALPHA]
        better, worse = ([p for p in told if _better(board, p) is way] for way in (True, False))
        same = [pair.label for pair in pairs if pair not in told]
        parts = [
            f"Better beyond noise: {listed(_shown(board, p) for p in better)}." if better else "No method is better.",
            f"Worse: {listed(_shown(board, p) for p in worse)}." if worse else "",
            f"Cannot be distinguished from it: {listed(same)}." if same else "",
        ]
        yield Statement(topic, " ".join(filter(None, parts)))


def _better(board: ConditionBoard, pair: Comparison) -> bool:
    return (pair.difference.estimate.mean > 0) == _higher_is_better(board)


def _higher_is_better(board: ConditionBoard) -> bool:
    """Returns the direction of the studied quantity; a drop is better if it is lower."""
    if board.signed:
        return False
    return next(column.higher_is_better for column in board.columns if formatting.metric(column) == board.quantity)


def _shown(board: ConditionBoard, pair: Comparison) -> str:
    found = pair.difference.estimate
    size = formatting.number(found.mean, board.digits, sign=True)
    return f"{pair.label} ({size}, {formatting.interval(found, board.digits)})"


def _floor(board: ConditionBoard) -> Iterator[Statement]:
    low = [(c, [row.label for row in board.rows if c in row.at_floor]) for c in board.conditions]
    parts = [f"{c}: {listed(labels)} {are(labels)} not better than the floor." for c, labels in low if labels]
    if parts:
        yield Statement("At the floor", " ".join(parts))


def _missing(board: ConditionBoard) -> Iterator[Statement]:
    short = [row.label for row in board.rows if any(len(row.values[c]) < len(row.planned) for c in board.conditions)]
    unfinished = {problem.label for problem in board.problems}
    absent = [label for label in short if label in unfinished]
    undefined = [label for label in short if label not in unfinished]
    if absent:
        reasons = list(dict.fromkeys(p.reason for p in board.problems if p.state == "failed"))
        why = (
            f" Failed: {'; '.join(formatting.shortened(reason, 120) for reason in reasons[:SHORT])}." if reasons else ""
        )
        yield Statement("Missing", f"Not every seed has a result: {listed(absent)}.{why}")
    if undefined and board.signed:
        yield Statement("Undefined", f"A change relative to a score of 0 has no value: {listed(undefined)}.")
