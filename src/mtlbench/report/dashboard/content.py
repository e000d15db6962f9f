"""What the end of a bench adds to a tracking tool: a run per row and seed, one per trial, and one for the study."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.report.model import ConditionBoard, Leaderboard, Row
from mtlbench.report.reader import ReportInput
from mtlbench.report.statistics import Estimate, estimate
from mtlbench.runs import keys
from mtlbench.tracking.base import ROW, SUMMARY, TRIAL, About, Ending, Table

if TYPE_CHECKING:
    from mtlbench.report.views.tables import AnyBoard


@dataclass(frozen=True)
class Tracked:
    """One run in a tool: what it is, and what it holds."""

    about: About
    ending: Ending


def study_runs(study: ReportInput, board: AnyBoard, page: Path | None = None) -> list[Tracked]:
    """Return the runs that stand for rows and trials, and the one that stands for the study, last.

    Args:
        study: The study.
        board: Its leaderboard, or its table of methods by conditions.
        page: The report, which becomes an artifact.
    """
    rows = [*_rows(study, board), *_trials(study, board)]
    about = About(
        f"{study.plan['suite']}-summary-{_hash(each.about.id for each in rows)}",
        f"{study.plan['suite']}: summary",
        study.plan["suite"],
        SUMMARY,
        "(summary)",
        {key: study.plan.get(key) for key in ("title", "version", "seeds", "selection", "search", "commit", "package")},
    )
    files = {f"{study.plan['suite']}-report": [page]} if page and page.is_file() else {}
    ending = Ending(tables=tables(board), figures=figures(study, board), files=files)
    return [*rows, Tracked(about, ending)]


def tables(board: AnyBoard) -> dict[str, Table]:
    """Return the tables of the study by name, in full precision."""
    found = {"leaderboard": _leaderboard(board) if isinstance(board, Leaderboard) else _conditions(board)}
    compared: Sequence[tuple[str, Any]] = (
        [("", each) for each in board.comparisons] if isinstance(board, Leaderboard) else board.comparisons
    )
    found["comparisons"] = Table(
        ("condition", "method", "against", "difference", "low", "high", "seeds", "p (Holm)"),
        [
            (condition, c.label, c.reference, *_interval(c.difference.estimate), c.difference.estimate.n, c.p_holm)
            for condition, c in compared
        ],
    )
    if isinstance(board, Leaderboard):
        found["trials"] = Table(
            ("method", "trial", "values", "score", "failed", "steps", "chosen"),
            [
                (tuning.label, t.number, _described(t.values), t.score, t.failed, t.steps, t.number == tuning.chosen)
                for tuning in board.tunings
                for t in tuning.trials
            ],
        )
        found["groups"] = Table(
            ("method", "seed", "networks", "search_seconds", "rank_correlation"),
            [
                (g.label, f.seed, " | ".join("+".join(group) for group in f.groups), f.search_seconds, f.correlation)
                for g in board.groupings
                for f in g.found
            ],
        )
    return {keys.TABLE.key(table=name): table for name, table in found.items() if table.rows}


def figures(study: ReportInput, board: AnyBoard) -> dict[str, Any]:
    """Return the figures of the report that a tool cannot draw from values alone, by name."""
    from mtlbench.report.figures import affinity, experts, scores, series, sharing, training, tuning

    if isinstance(board, ConditionBoard):
        return _named("verdict", training.conditions(board))
    curves = series.read_series(study)
    tasks = [column.task for column in board.primary]
    drawn = {
        "verdict": {"delta_m of every seed": scores.seeds(board)},
        "tasks": {"gain over the baseline per task": scores.gains(board)},
        "cost": {"delta_m against cost": scores.cost(board)},
        "gradients": {"cosine between tasks": training.cosines(board, curves, tasks)},
        "experts": experts.usage_figures(experts.read_usage(study), curves),
        "grouping": affinity.affinity_figures(board.groupings),
        "search": tuning.tuning_figures(board.tunings),
        "sharing": sharing.sharing_figures(sharing.read_sharing(study, board)),
    }
    return {name: figure for part, found in drawn.items() for name, figure in _named(part, found).items()}


def _rows(study: ReportInput, board: AnyBoard) -> Iterator[Tracked]:
    for row in board.rows:
        for seed in sorted({entry["seed"] for entry in study.plan["rows"] if entry["label"] == row.label}):
            values = _of_row(row, seed) if isinstance(row, Row) else _of_conditions(row, seed)
            entries = [e for e in study.plan["rows"] if (e["label"], e["seed"]) == (row.label, seed)]
            if values:
                runs = _hash(run for entry in entries for run in entry["serving"].values())
                about = About(
                    f"{row.label}-s{seed}-row-{runs}",
                    f"{row.label} s{seed}: all tasks",
                    study.plan["suite"],
                    ROW,
                    row.label,
                    {"seed": seed, "method": {"name": row.method}},
                )
                yield Tracked(about, Ending(values))


def _of_row(row: Row, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        keys.ROW_SCORE.key(task=task, protocol=protocol): by_seed[seed]
        for (task, protocol), by_seed in row.scores.items()
        if seed in by_seed
    }
    if seed in row.deltas:
        found[keys.DELTA.key()] = row.deltas[seed]
    if found and row.rank is not None:
        found[keys.RANK.key()] = row.rank
    return found | _costs(row) if found else {}


def _of_conditions(row: Any, seed: int) -> dict[str, Any]:
    found = {keys.ROW_VALUE.key(condition=c): values[seed] for c, values in row.values.items() if seed in values}
    return found | _costs(row) if found else {}


def _costs(row: Any) -> dict[str, float]:
    costs = row.cost.values if row.cost else {}
    return {keys.ROW_COST.key(cost=name): value for name, value in costs.items() if value is not None}


def _trials(study: ReportInput, board: AnyBoard) -> Iterator[Tracked]:
    for tuning in board.tunings if isinstance(board, Leaderboard) else ():
        for trial in tuning.full:
            config = {"values": dict(trial.values), "trial": trial.number, "chosen": trial.number == tuning.chosen}
            about = About(
                f"{tuning.label}-trial{trial.number}-{_hash([study.plan['key']])}",
                f"{tuning.label} trial {trial.number}",
                study.plan["suite"],
                TRIAL,
                tuning.label,
                config,
            )
            yield Tracked(about, Ending({} if trial.score is None else {keys.TRIAL_SCORE.key(): trial.score}))


def _leaderboard(board: Leaderboard) -> Table:
    costs = sorted({name for row in board.rows if row.cost for name in row.cost.values})
    head = ("rank", "method", "seeds", "delta_m", "low", "high")
    scores = [f"{column.task} {column.protocol} {column.arrow}" for column in board.primary]
    return Table(
        (*head, *scores, *costs),
        [
            (
                row.rank,
                row.label,
                len(row.seeds),
                *_interval(row.delta),
                *(_mean(row.cells.get(column.key)) for column in board.primary),
                *(row.cost.values.get(name) if row.cost else None for name in costs),
            )
            for row in board.rows
        ],
    )


def _conditions(board: ConditionBoard) -> Table:
    lines = [
        (row.label, condition, *_interval(estimate(values.values())), len(values))
        for row in board.rows
        for condition, values in row.values.items()
        if values
    ]
    return Table(("method", "condition", board.quantity, "low", "high", "seeds"), lines)


def _interval(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (found.mean, found.low, found.high) if found else (None, None, None)


def _mean(found: Estimate | None) -> float | None:
    return found.mean if found else None


def _described(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _named(part: str, found: dict[str, Any]) -> dict[str, Any]:
    drawn = {title: figure for title, figure in found.items() if figure is not None}
    return {keys.FIGURE.key(part=part, figure=_slug(title)): figure for title, figure in drawn.items()}


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower().replace("δ", "delta_")).strip("_")


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
