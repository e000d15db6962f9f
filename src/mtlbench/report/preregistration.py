"""What a report may show of a pre-registered comparison: seeds set apart, and looks at its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mtlbench.report.model import NamedPair
from mtlbench.report.reader import ReportInput
from mtlbench.runs.registration import look, registration_of

Record = Mapping[str, Any]


def without_seeds_set_apart(study: ReportInput) -> ReportInput:
    """Hides all results of the seeds that a suite sets apart (``confirm``) until every one of them is there.

    Whoever saw some of them could stop, or change the comparison, when they look well.
    """
    seeds = study.plan.get("confirm") or []
    if not seeds:
        return study
    apart = [entry for entry in study.plan["rows"] if entry["seed"] in seeds]
    done = [entry for entry in apart if entry["serving"] and set(entry["serving"].values()) <= study.results.keys()]
    listed = ", ".join(map(str, seeds))
    if len(done) == len(apart):
        return replace(study, plan={**study.plan, "set_apart": f"{listed}; all are done, and shown"})
    rows = [entry for entry in study.plan["rows"] if entry["seed"] not in seeds]
    shown = {run for entry in rows for run in (*entry["runs"], *entry["serving"].values())}
    text = f"{listed}; hidden until all are done ({len(done)} of {len(apart)} rows are)"
    return replace(
        study,
        plan={**study.plan, "rows": rows, "set_apart": text},
        results={run: result for run, result in study.results.items() if run in shown},
        errors={run: error for run, error in study.errors.items() if run in shown},
    )


def named_pair(study: ReportInput) -> NamedPair | None:
    """Returns the comparison that a study names, and counts a look at its outcome if this report shows it.

    An outcome is shown from two seeds on, since one seed gives no p-value.
    """
    found = registration_of(study.folder, study.plan)
    if found is None:
        return None
    seeds = tuple(study.plan.get("confirm") or ()) if _complete(study) else ()
    looks = 1
    if found.confirmatory and not seeds and (runs := _deciding(study.plan, study.results, found.pair)):
        looks = look(study.folder, runs)
    return NamedPair(*found.pair, found.confirmatory, str(found), looks, seeds)


def _complete(study: ReportInput) -> bool:
    return bool({entry["seed"] for entry in study.plan["rows"]} & set(study.plan.get("confirm") or ()))


def _deciding(plan: Record, results: Record, pair: tuple[str, str]) -> set[str]:
    """Returns the runs of both rows at their common finished seeds; empty for fewer than two such seeds."""
    by_label: dict[str, dict[int, set[str]]] = {label: {} for label in pair}
    for entry in plan["rows"]:
        runs = set(entry["serving"].values())
        if entry["label"] in by_label and runs and runs <= results.keys():
            by_label[entry["label"]].setdefault(entry["seed"], set()).update(runs)
    ours, theirs = by_label.values() if len(by_label) == 2 else ({}, {})
    common = ours.keys() & theirs.keys()
    return {run for seed in common for run in ours[seed] | theirs[seed]} if len(common) > 1 else set()
