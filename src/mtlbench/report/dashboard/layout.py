"""The dashboard of a study: sections of panels over the values that its runs have logged, and over no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtlbench.report.dashboard.content import Tracked
from mtlbench.report.figures.style import COLOURS
from mtlbench.report.model import Column, ConditionRow, Row
from mtlbench.report.reader import ReportInput, read_metrics, read_summary
from mtlbench.report.tables.cost import runs_of
from mtlbench.runs import keys
from mtlbench.runs.keys import Family
from mtlbench.tracking.base import TRIAL
from mtlbench.tracking.panels import (
    Axis,
    Bars,
    Dashboard,
    Importance,
    Lines,
    Media,
    Panel,
    Parallel,
    Scatter,
    Section,
    TablePanel,
)  # fmt: skip

if TYPE_CHECKING:
    from mtlbench.report.views.tables import AnyBoard

COSTS = ("seconds_per_step", "training_flops", "parameters", "flops", "peak_memory_gib", "train_seconds")
"""Costs that a dashboard shows, the first ones against Δm."""


@dataclass(frozen=True)
class Logged:
    """Names of the values that the runs of a study have logged.

    Attributes:
        history: Over steps, in the order in which they were first met.
        ending: Scores, costs, tables, pictures and figures at the end of runs.
        values: What trials changed.
        runs: Ids of the runs.
    """

    history: tuple[str, ...]
    ending: tuple[str, ...]
    values: tuple[str, ...]
    runs: tuple[str, ...]

    def over_steps(self, *families: Family) -> dict[str, dict[str, str]]:
        """Return the values over steps of some families, with their parts."""
        return {key: parts for family in families for key, parts in family.among(self.history).items()}

    def at_end(self, *families: Family) -> dict[str, dict[str, str]]:
        """Return the final values of some families, with their parts."""
        return {key: parts for family in families for key, parts in family.among(self.ending).items()}


def logged(study: ReportInput, tracked: Iterable[Tracked]) -> Logged:
    """Read which values the runs of a study have logged.

    Args:
        study: The study.
        tracked: What the end of the bench adds.
    """
    runs = list(dict.fromkeys(run for entry in study.plan["rows"] for run in runs_of(entry)))
    history: dict[str, None] = {}
    ending: dict[str, None] = {}
    for run in runs:
        for row in read_metrics(study.folder / run):
            history |= dict.fromkeys(key for key in row if key != "step")
        if run in study.results:
            ending |= dict.fromkeys(keys.final_values(study.results[run]))
            if read_summary(study, run).get("experts"):
                ending[keys.USAGE.key()] = None
            ending |= dict.fromkeys(_pictures(study.folder / run / "examples.npz", ending))
    tried: dict[str, None] = {}
    for each in tracked:
        runs.append(each.about.id)
        ending |= dict.fromkeys([*each.ending.summary, *each.ending.tables, *each.ending.figures])
        if each.about.kind == TRIAL:
            tried |= dict.fromkeys(each.about.config["values"])
    return Logged(tuple(history), tuple(ending), tuple(tried), tuple(runs))


def dashboard(study: ReportInput, board: AnyBoard, found: Logged) -> Dashboard:
    """Return the dashboard of a study; sections without a panel are left out.

    Args:
        study: The study.
        board: Its leaderboard, or its table of methods by conditions.
        found: What its runs have logged.
    """
    columns = board.columns
    rows: Sequence[Row | ConditionRow] = board.rows
    sections: dict[str, list[Panel]] = {
        "Verdict": _verdict(found),
        "Per task": _per_task(found, columns),
        "Cost": _cost(found),
        "Training": _training(found, columns),
        "Gradients": _gradients(found),
        "Experts": _experts(found),
        "Grouping": [*_tables(found, "groups"), *_figures(found, "grouping")],
        "Search": _search(found),
        "Pictures": [
            Media(_title(key, parts), (key,)) for key, parts in found.at_end(keys.INPUT, keys.PICTURE).items()
        ],
        "Method": _own(found),
    }
    shown = {name: panels for name, panels in sections.items() if panels}
    primary = {column.key for column in columns if column.primary}
    scores = [k for k, p in found.at_end(keys.ROW_SCORE).items() if (p["task"], p["protocol"]) in primary]
    costs = [keys.ROW_COST.key(cost=cost) for cost in COSTS]
    head = [*found.at_end(keys.RANK, keys.DELTA), *found.at_end(keys.ROW_VALUE), *scores]
    return Dashboard(
        name=f"mtlbench: {study.plan['suite']}",
        slug=f"mtlbench-{study.plan['suite']}",
        sections=tuple(Section(name, tuple(panels), name == "Verdict") for name, panels in shown.items()),
        runs=found.runs,
        colours={row.label: COLOURS[i % len(COLOURS)] for i, row in enumerate(rows)},
        columns=(*head, *(key for key in costs if key in found.ending)),
        order=next(iter(found.at_end(keys.DELTA)), ""),
    )


def _verdict(found: Logged) -> list[Panel]:
    bars = [Bars("Δm in %: mean, lowest and highest seed", (key,)) for key in found.at_end(keys.DELTA)]
    values = tuple(found.at_end(keys.ROW_VALUE))
    by_condition = [Bars("By condition: mean, lowest and highest seed", values)] if values else []
    return [
        *_tables(found, "leaderboard"),
        *bars,
        *by_condition,
        *_figures(found, "verdict"),
        *_tables(found, "comparisons"),
    ]


def _per_task(found: Logged, columns: tuple[Column, ...]) -> list[Panel]:
    known = {(parts["task"], parts["protocol"]): key for key, parts in found.at_end(keys.ROW_SCORE).items()}
    primary = [(c, known[c.key]) for c in columns if c.primary and c.key in known]
    bars = [Bars(f"{c.task}: {c.protocol} {c.arrow}", (known[c.key],)) for c in columns if c.key in known]
    axes = tuple(Axis(key, f"{c.task} {c.arrow}", not c.higher_is_better) for c, key in primary)
    return [
        *([Parallel("All tasks, upwards is better", axes)] if len(axes) > 1 else []),
        *_figures(found, "tasks"),
        *bars,
    ]


def _cost(found: Logged) -> list[Panel]:
    costs = {parts["cost"]: key for key, parts in found.at_end(keys.ROW_COST).items() if parts["cost"] in COSTS}
    known = {cost: costs[cost] for cost in COSTS if cost in costs}
    against = [Scatter(f"Δm against {cost}", key, y) for y in found.at_end(keys.DELTA) for cost, key in known.items()]
    return [*_figures(found, "cost"), *against[:3], *(Bars(cost, (key,)) for cost, key in known.items())]


def _training(found: Logged, columns: tuple[Column, ...]) -> list[Panel]:
    primary = {column.key: column.arrow for column in columns if column.primary}
    during = {k: p for k, p in found.over_steps(keys.SCORE).items() if p["split"] == "val"}
    scores = {k: p for k, p in during.items() if (p["task"], p["protocol"]) in primary}
    return [
        *(Lines(f"Loss: {parts['task']}", (key,), log=True) for key, parts in found.over_steps(keys.LOSS).items()),
        *(Lines(f"{p['task']}: {p['protocol']} {primary[p['task'], p['protocol']]}", (k,)) for k, p in scores.items()),
        *(Lines("Learning rate", (key,)) for key in found.over_steps(keys.LR)),
    ]


def _gradients(found: Logged) -> list[Panel]:
    single = (keys.CONFLICTS, keys.TURN, keys.SIMILARITY, keys.CONDITION)
    by_task = found.over_steps(keys.WEIGHT), found.over_steps(keys.NORM)
    return [
        *(Lines(f.about.capitalize(), (key,), log=f is keys.CONDITION) for f in single for key in found.over_steps(f)),
        *_figures(found, "gradients"),
        *(Lines(f"Weight in the update: {parts['task']}", (key,)) for key, parts in by_task[0].items()),
        *(Lines(f"Norm of the gradient: {parts['task']}", (key,), log=True) for key, parts in by_task[1].items()),
        *(Lines(f"Cosine: {p['task']}, {p['other']}", (key,)) for key, p in found.over_steps(keys.COSINE).items()),
    ]


def _experts(found: Logged) -> list[Panel]:
    layers: dict[str, list[str]] = {}
    for key, parts in found.over_steps(keys.LOAD).items():
        layers.setdefault(parts["layer"], []).append(key)
    informed = found.over_steps(keys.INFORMATION)
    return [
        *_figures(found, "experts"),
        *(TablePanel(key) for key in found.at_end(keys.USAGE)),
        *(Lines(f"Mutual information of tasks and experts: {p['layer']}", (key,)) for key, p in informed.items()),
        *(Lines(f"Load of every expert: {layer}", tuple(loads)) for layer, loads in layers.items()),
    ]


def _search(found: Logged) -> list[Panel]:
    score = next(iter(found.at_end(keys.TRIAL_SCORE)), "")
    panels = [*_tables(found, "trials"), *_figures(found, "search")]
    if not score:
        return panels
    axes = (*(Axis(f"values.{name}", name, config=True) for name in found.values), Axis(score, "gain in %"))
    return [*panels, Parallel("Trials", axes), Importance(score)]


def _own(found: Logged) -> list[Panel]:
    """Return panels of what only some methods record; names that a method of the user adds are among them."""
    declared = found.over_steps(*keys.HISTORY)
    shipped = found.over_steps(keys.DISTILLATION, keys.MIXING, keys.SHARED, keys.REGIME)
    some = [*shipped, *(key for key in found.history if key not in declared)]
    return [*_figures(found, "sharing"), *(Lines(key, (key,)) for key in some)]


def _figures(found: Logged, part: str) -> list[Panel]:
    named = {key: parts for key, parts in found.at_end(keys.FIGURE).items() if parts["part"] == part}
    return [Media(parts["figure"].replace("_", " "), (key,)) for key, parts in named.items()]


def _tables(found: Logged, *names: str) -> list[Panel]:
    return [TablePanel(key) for key, parts in found.at_end(keys.TABLE).items() if parts["table"] in names]


def _title(key: str, parts: Mapping[str, str]) -> str:
    return f"{parts['task']}: truth, prediction" if parts else "Input"


def _pictures(path: Path, known: Mapping[str, None]) -> Iterator[str]:
    """Yield the names under which a run shows its examples; those that are known already are not looked at again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if len(file["image"]) if "image" in file.files and keys.INPUT.key() not in known else 0:
                yield keys.INPUT.key()
            for name in file.files:
                key = keys.PICTURE.key(task=name.removeprefix("shown/prediction/"))
                if name.startswith("shown/prediction/") and key not in known and file[name].dtype.kind != "U":
                    yield key
    except Exception:  # A broken archive raises many things, and is never worth a dashboard.
        return
