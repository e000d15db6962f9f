"""The verdict on a leaderboard: who leads, by how much, at what cost, and what cannot be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtlbench import registry
from mtlbench.report import formatting
from mtlbench.report.model import Leaderboard, Row
from mtlbench.report.statistics import ALPHA, seeds_to_detect
from mtlbench.report.tables.ranking import REFERENCE
from mtlbench.report.verdict.tasks import by_task
from mtlbench.report.verdict.words import SHORT, Pair, Statement, are, compared, listed, with_interval


def ranked_verdict(board: Leaderboard) -> tuple[Statement, ...]:
    """Returns what a leaderboard shows and what it cannot show, the most important statement first.

    Sentences about who is ahead rest on paired t tests with Holm's correction. If the baseline is itself at the floor,
    none is made about Δm.
    """
    ranked = [row for row in board.rows if row.rank is not None]
    if len(ranked) < 2:
        found: list[Statement | None] = [_too_few(ranked), *by_task(board)]
    elif ranked[0].unfounded:
        found = [_unfounded(board), *by_task(board)]
    else:
        found = [
            _lead(ranked),
            *_named(board),
            *_against(board, ranked),
            _surgery(ranked),
            _cost(ranked),
            _resolution(board, ranked),
            *by_task(board),
        ]
    found += [_floor(board), _tuning(board), _missing(board)]
    return tuple(statement for statement in found if statement)


def _too_few(ranked: Sequence[Row]) -> Statement:
    if not ranked:
        return Statement("Nothing to report yet", "No method has Δm yet, so no two can be compared.")
    return Statement("Nothing to report yet", f"Only {ranked[0].label} has Δm, so there is nothing to compare it with.")


def _lead(ranked: Sequence[Row]) -> Statement:
    """Says who leads, by how much, and who is within noise of the first."""
    best = ranked[0]
    pairs = compared({row.label: row.deltas for row in ranked}, best.label)
    value = f"{formatting.number(_mean(best), 2, sign=True)} %"
    if any(pair.p is None for pair in pairs):
        return Statement(
            "Best method",
            f"{best.label} has the highest Δm, {value}, but one seed gives no measure of noise: no difference between "
            "methods can be distinguished from chance. Run at least three seeds.",
        )
    tied, rest = [p for p in pairs if not p.told], [p for p in pairs if p.told]
    if not tied:
        near = max(rest, key=lambda pair: pair.difference.estimate.mean)
        text = f"{best.label} is ahead of every other method beyond noise, with a mean Δm of {value}. "
        return Statement("Best method", f"{text}The next, {near.label}, is {_behind(near)} points of Δm behind.")
    if not rest:
        text = (
            f"No method leads beyond noise. {best.label} has the highest mean Δm, {value}, but no other method can be "
            f"distinguished from it{_closest(tied)}."
        )
        return Statement("Best method", text)
    text = (
        f"{best.label} has the highest mean Δm, {value}, but {listed(p.label for p in tied)} cannot be "
        f"distinguished from it{_closest(tied)}. Beyond noise, it is ahead of "
        f"{listed(p.label for p in rest)}, by {_range(rest)}."
    )
    return Statement("Best method", text)


def _closest(tied: Sequence[Pair]) -> str:
    near = max(tied, key=lambda pair: pair.difference.estimate.mean)
    return f": {near.label} is {_behind(near)} points behind"


def _behind(pair: Pair) -> str:
    """Returns by how much a row is behind, with the interval."""
    found = pair.difference.estimate
    low, high = (None if end is None else -end for end in (found.high, found.low))
    if low is None or high is None:
        return formatting.number(-found.mean, 2)
    return (
        f"{formatting.number(-found.mean, 2)} "
        f"(95 % interval {formatting.number(low, 2)} to {formatting.number(high, 2)})"
    )


def _range(pairs: Sequence[Pair]) -> str:
    sizes = [abs(pair.difference.estimate.mean) for pair in pairs]
    ends = list(dict.fromkeys(formatting.number(end, 2) for end in (min(sizes), max(sizes))))
    return f"{' to '.join(ends)} points"


def _named(board: Leaderboard) -> Iterator[Statement]:
    """Yields the outcome of the pre-registered comparison."""
    for pair in board.comparisons:
        if pair.named:
            told = pair.p_holm is not None and pair.p_holm < ALPHA
            word = "differs beyond noise" if told else "cannot be distinguished"
            size = formatting.number(pair.difference.estimate.mean, 2, sign=True)
            yield Statement(
                "Pre-registered",
                f"{pair.label} {word} from {pair.reference}: {size} points of Δm, 95 % interval "
                f"{formatting.interval(pair.difference.estimate)}, p = {formatting.probability(pair.p_holm)}, without "
                "a correction for the other rows, because it was chosen before the first run.",
            )


def _against(board: Leaderboard, ranked: Sequence[Row]) -> Iterator[Statement]:
    """Yields who is ahead of and behind the baseline and `uniform`; nothing for the best row or for one seed."""
    labels = [row.label for row in ranked]
    # The pre-registered comparison has a sentence and a test of its own.
    named = [{pair.label, pair.reference} for pair in board.comparisons if pair.named]
    for label in dict.fromkeys(filter(None, [board.baseline, _uniform(ranked)])):
        pairs = compared({r.label: r.deltas for r in ranked}, label) if label in labels else []
        if not pairs or any(pair.p is None for pair in pairs) or (label == labels[0] and len(pairs) == 1):
            continue
        others = [pair for pair in pairs if {pair.label, label} not in named]
        if not others:
            continue
        none = "No method" if len(others) == len(pairs) else "No other method"
        ahead, behind = [p for p in others if p.ahead], [p for p in others if p.behind]
        same = [p for p in others if not p.told]
        parts = [
            f"Ahead beyond noise: {listed(map(with_interval, ahead))}." if ahead else f"{none} is ahead of it.",
            f"Behind: {listed(map(with_interval, behind))}." if behind else "",
            f"Cannot be distinguished from it: {listed(p.label for p in same)}." if same else "",
        ]
        yield Statement(f"Against {label}", " ".join(filter(None, parts)))


def _uniform(ranked: Sequence[Row]) -> str:
    """Returns the label of the row with equal weights; ``""`` if there is none."""
    named = next((r.label for r in ranked if r.label == REFERENCE), "")
    return named or next((r.label for r in ranked if r.method == REFERENCE), "")


def _surgery(ranked: Sequence[Row]) -> Statement | None:
    """Says whether the rules that use every task's gradient beat equal weights, and what a step of theirs takes."""
    uniform = _uniform(ranked)
    rules = {r.label: r for r in ranked if (file := registry.file_of(r.method)) and file.parent.name == "gradients"}
    pairs = [p for p in compared({r.label: r.deltas for r in ranked}, uniform) if p.label in rules] if uniform else []
    if not pairs or any(pair.p is None for pair in pairs):
        return None
    ahead, behind = [p.label for p in pairs if p.ahead], [p.label for p in pairs if p.behind]
    same = [p.label for p in pairs if not p.told]
    parts = [
        f"{listed(ahead) if ahead else 'none'} {are(ahead or ['none'])} ahead of {uniform} beyond noise",
        f"{listed(behind)} {are(behind)} behind it" if behind else "",
        f"{listed(same)} cannot be distinguished from it" if same and (ahead or behind) else "",
    ]
    text = f"Of the rules that use every task's gradient ({listed(rules)}), {'; '.join(filter(None, parts))}."
    base = next(row for row in ranked if row.label == uniform)
    for ratio, text_of in (
        (_time, "A step takes {} × the time of one with {}, measured in pairs."),
        (_work, "Training takes {} × the FLOPs of {}."),
    ):
        known = [found for row in rules.values() if (found := ratio(row, base))]
        if len(known) == len(rules):
            ends = list(dict.fromkeys(f"{end:.2f}" for end in (min(known), max(known))))
            text += " " + text_of.format(" to ".join(ends), uniform)
            break
    return Statement("Gradient surgery", text)


_PRICES = {
    "parameters": "the parameters",
    "flops": "the FLOPs of a prediction",
    "training_flops": "the FLOPs of training",
    "peak_memory_gib": "the memory",
}
"""Costs that a sentence gives as ratios, besides time measured in pairs."""


def _cost(ranked: Sequence[Row]) -> Statement | None:
    """Says what the best method costs relative to a reference, and which of the methods tied with it is cheapest."""
    best = ranked[0]
    base = next((r for r in ranked if REFERENCE in (r.label, r.method) and r is not best and r.cost), None)
    base = base or next((r for r in ranked if r is not best and r.cost), None)
    if not best.cost or not base:
        return None
    # Times of the study's own runs are not compared: those runs may have shared the machine with others.
    ratios = [f"{time:.2f} × the time of a step, measured in pairs"] if (time := _time(best, base)) else []
    for key, what in _PRICES.items():
        if ratio := _ratio(best, base, key):
            ratios.append(f"{ratio:.2f} × {what}")
    if not ratios:
        return None
    text = f"Relative to {base.label}, {best.label} takes {listed(ratios)}."
    tied = [row for row in ranked if row.rank == 1]
    priced = [(work, row.label) for row in tied if (work := _price(row, "training_flops"))]
    if len(priced) == len(tied) > 1 and min(priced)[1] != best.label:
        least = formatting.count(min(priced)[0]), formatting.count(_price(best, "training_flops"))
        text += (
            f" Of the methods that share its rank, {min(priced)[1]} takes the fewest FLOPs to train: {least[0]} "
            f"against {least[1]}."
        )
    return Statement("Cost", text)


def _time(row: Row, base: Row) -> float | None:
    """Returns the ratio of seconds per step, if it was measured in pairs."""
    paired = row.cost.paired if row.cost else None
    return paired.ratio if paired and paired.reference == base.label else None


def _work(row: Row, base: Row) -> float | None:
    """Returns the ratio of the FLOPs of training."""
    return _ratio(row, base, "training_flops")


def _ratio(row: Row, base: Row, key: str) -> float | None:
    ours, theirs = _price(row, key), _price(base, key)
    return ours / theirs if ours and theirs else None


def _price(row: Row, key: str) -> float:
    return (row.cost.values.get(key) or 0.0) if row.cost else 0.0


def _resolution(board: Leaderboard, ranked: Sequence[Row]) -> Statement | None:
    """Says which differences the study would miss, and how many seeds would tell the first two apart."""
    if not board.resolution:
        return None
    able = board.resolution
    more = f" {able.seeds} seeds would show 1 point." if able.seeds and able.seeds > able.n else ""
    if able.seeds is None:
        more = " Even 100 seeds would not show 1 point."
    text = (
        f"With {able.n} seeds, a true difference in Δm from {able.reference} of less than {able.detectable:.1f} points "
        f"would be missed more often than one time in five.{more}"
    )
    pairs = compared({r.label: r.deltas for r in ranked if r.rank == 1}, ranked[0].label)
    near = max(pairs, key=lambda pair: pair.difference.estimate.mean, default=None)
    found = near.difference.estimate if near else None
    if near and found and found.std and found.mean:
        count = seeds_to_detect(found.std, abs(found.mean))
        if count is None or count > found.n:
            text += (
                f" If {ranked[0].label} and {near.label} really differ by the {formatting.number(-found.mean, 2)} "
                f"points seen here, {f'about {count}' if count else 'more than 100'} seeds would tell them apart."
            )
    return Statement("What cannot be shown", text)


def _unfounded(board: Leaderboard) -> Statement:
    base = next(row for row in board.rows if row.label == board.baseline)
    weak = [c.task for c in board.columns if c.in_delta_m and c.key in base.at_floor]
    return Statement(
        "No claim on Δm",
        f"The baseline {board.baseline} is itself not better than the floor in {listed(weak)}. Gains over a network "
        "that has learned nothing mean nothing, so this study does not show which method is best overall. Longer "
        "training, more data, or leaving those tasks out would make Δm meaningful.",
    )


def _floor(board: Leaderboard) -> Statement | None:
    """Says who is not better than a prediction that ignores the input."""
    rows = [row for row in board.rows if not row.floor and row.cells]
    parts, nobody = [], []
    for column in board.primary:
        low = [row.label for row in rows if column.key in row.at_floor]
        if low and len(low) == len([row for row in rows if column.key in row.cells]):
            nobody.append(column.task)
        elif low:
            parts.append(f"{column.task}: {listed(low)} {are(low)} not better than the floor.")
    if nobody:
        parts.append(f"{listed(nobody)}: no method is better than the floor, so the scores show no learning.")
    if parts and any(row.seeds and len(row.seeds) == 2 for row in rows):
        parts.append("With two seeds, intervals are so wide that even a clear lead over the floor may not show.")
    return Statement("At the floor", " ".join(parts)) if parts else None


def _tuning(board: Leaderboard) -> Statement | None:
    """Says whether rows were tuned alike."""
    tried = {tuning.label: tuning.tried for tuning in board.tunings}
    rows = [row.label for row in board.rows if not row.floor and row.cells]
    if len(rows) < 2:
        return None
    tuned, untuned = [x for x in rows if x in tried], [x for x in rows if x not in tried]
    if not tuned:
        return Statement(
            "Tuning",
            "No method was tuned. One learning rate does not suit every method, so ranks may change with equal tuning "
            "(`--trials`).",
        )
    if untuned:
        return Statement(
            "Tuning",
            f"{listed(tuned)} {are(tuned, 'was', 'were')} tuned, {listed(untuned)} {are(untuned, 'was', 'were')} "
            "not. A lead of a tuned method over an untuned one may come from the search alone.",
        )
    counts = {tried[label] for label in tuned}
    if len(counts) == 1:
        return Statement("Tuning", f"Every method was tuned with the same number of trials, {counts.pop()}.")
    return Statement(
        "Tuning",
        f"Methods were tuned with {min(counts)} to {max(counts)} trials each, so the tuning effort was not equal.",
    )


def _missing(board: Leaderboard) -> Statement | None:
    """Says which rows are not ranked, and why; rows with the same reason are named together."""
    reasons: dict[str, list[str]] = {}
    for row in board.rows:
        if row.rank is None and not row.floor:
            own = [p for p in board.problems if p.label == row.label]
            failed = next((p for p in own if p.state == "failed"), None)
            why = f" ({formatting.shortened(failed.reason, 120)})" if failed else ""
            reasons.setdefault(f"{row.hint or 'no result'}{why}", []).append(row.label)
    if not reasons:
        return None
    parts = [f"{listed(labels)}: {reason}." for reason, labels in reasons.items()]
    left = [f"{len(parts) - SHORT} more reasons are in the table of problems."] if len(parts) > SHORT else []
    return Statement("Not ranked", " ".join(["Without rank and Δm:", *parts[:SHORT], *left]))


def _mean(row: Row) -> float:
    return row.delta.mean if row.delta else 0.0
