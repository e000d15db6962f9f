"""Costs measured by ``mtlbench cost``, stored beside a study, and the budgets that they settle. Starts without torch.

``cost.json`` holds one entry per row of a suite. An entry counts as long as its `key` is that of the row today: other
hyper-parameters, data, model or batch make it another row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError, SuiteError
from mtlbench.runs.plan import Plan, foreseen, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import read_json, write_json

FILE = "cost.json"
UNITS = ("steps", "flops", "seconds")
"""What the rows of a suite may have in common: steps, FLOPs or seconds of training."""

TRIES = 12
"""How often the number of steps of a row is corrected to meet its budget; most need two."""


def key_of(spec: RunSpec, reference: RunSpec) -> str:
    """Returns what identifies a measurement of a row against a reference, whatever its seed and number of steps."""
    parts = [[s.method, s.tasks, s.data, s.model, s.optimiser["name"], _shape(s)] for s in (spec, reference)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _shape(spec: RunSpec) -> list[Any]:
    return [spec.trainer[key] for key in ("batch_size", "accumulate", "precision", "clip")]


def reference_of(specs: Sequence[RunSpec], name: str) -> RunSpec:
    """Returns the run that others are compared with: that of a label of the suite, or of a method by name."""
    labelled = [spec for spec in specs if spec.label == name]
    return labelled[0] if labelled else specs[0].with_method(registry.record(name))


def runs_of(spec: RunSpec) -> tuple[list[RunSpec], list[RunSpec]]:
    """Returns all runs of a row, and those that serve its tasks.

    Raises:
        MethodError: If its plan chooses them by results.
    """
    cls: Any = registry.find(spec.method["path"])
    plan: Plan = cls.plan(spec) if hasattr(cls, "plan") else one_run(spec)
    try:
        every, serving = foreseen(plan)
    except MethodError as error:
        raise MethodError(f"{spec.label}: {error}") from error
    return every, [run for run in every if run.run_id in serving.values()]


def read(root: Path) -> dict[str, dict[str, Any]]:
    """Returns the stored entries by label, without damaged ones; empty if there are none."""
    rows = (read_json(root / FILE) or {}).get("rows")
    return {label: row for label, row in rows.items() if _is_entry(row)} if isinstance(rows, dict) else {}


def _is_entry(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("key", "reference", "created")):
        return False
    numbers = [row.get(key) for key in ("ratio", "seconds_ratio", "flops_ratio", "pairs")]
    ends = [row.get("low"), row.get("high")]
    return all(
        isinstance(n, (int, float)) and 0 < n < float("inf") for n in (*numbers, *(e for e in ends if e is not None))
    )


def store(root: Path, suite: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds entries to those that are stored."""
    write_json(root / FILE, {"format": 1, "suite": suite, "rows": {**read(root), **rows}})


def with_budget(
    specs: Sequence[RunSpec], unit: str, of: str, root: Path | None
) -> tuple[list[RunSpec], dict[str, Any] | None]:
    """Returns the runs of a study with as many steps as a budget gives them, and what the report shows of it.

    A row has all of its runs trained for equally many steps, such that the training of all of them together costs as
    much as that of the reference for the steps of the suite. Warmup keeps its share.

    Args:
        specs: One run per label and seed, with the suite's steps.
        unit: One of `UNITS`.
        of: Label or method whose cost is the budget.
        root: ``results/<suite>``, where measured costs are; None if unknown.

    Raises:
        MethodError: If the runs of a row depend on results.
        SuiteError: If seconds are asked for that were not measured.
    """
    if unit == "steps" or not specs:
        return list(specs), None
    reference = reference_of(specs, of)
    stored = read(root) if root else {}
    first = {spec.label: spec for spec in reversed(specs)}
    steps: dict[str, int] = {}
    missing = []
    for label, spec in first.items():
        entry = stored.get(label, {})
        known = entry.get("key") == key_of(spec, reference)
        if spec.method == reference.method and spec.model == reference.model:
            steps[label] = spec.trainer["steps"]
        elif known and not (unit == "flops" and entry.get("prepares")):  # Its FLOPs are no multiple of its steps.
            steps[label] = max(1, round(spec.trainer["steps"] / entry[f"{unit}_ratio"]))
        elif unit == "flops":
            steps[label] = _steps_of_equal_flops(spec, reference)
        else:
            missing.append(label)
    if missing:
        raise SuiteError(
            f"trainer.budget.unit=seconds compares rows by seconds that were measured. Not measured yet: "
            f"{', '.join(missing)}. Measure them first: mtlbench cost {specs[0].suite}"
        )
    described = {"unit": unit, "of": of, "steps": steps, "reference_steps": specs[0].trainer["steps"]}
    return [_with_steps(spec, steps[spec.label]) for spec in specs], described


def _steps_of_equal_flops(spec: RunSpec, reference: RunSpec) -> int:
    """Returns for how many steps all runs of a row take the FLOPs of the reference."""
    from mtlbench.training.pace import phase_flops, training_flops

    budget, steps = training_flops(reference), spec.trainer["steps"]
    known: list[tuple[RunSpec, dict[str, float], dict[int, int]]]
    known = [(run, phase_flops(run), {}) for run in runs_of(spec)[0]]

    def own(steps: int) -> float:
        return sum(training_flops(_with_steps(run, steps), found, seen) for run, found, seen in known)

    # Not in one go: how often a phase occurs, and how much is prepared, may depend on the number of steps.
    for _ in range(TRIES):
        before, steps = steps, max(1, round(steps * budget / own(steps)))
        if steps == before:
            break
    if steps == 1 and (least := own(1)) > budget:
        raise SuiteError(
            f"trainer.budget.unit=flops gives every row the FLOPs of {reference.label}, {budget:.3g} here. One step of "
            f"{spec.label} takes {least:.3g}, with what it computes before. Raise trainer.steps, or prepare on fewer "
            "batches."
        )
    return steps


def _with_steps(spec: RunSpec, steps: int) -> RunSpec:
    share = steps / spec.trainer["steps"]
    return replace(
        spec,
        trainer={**spec.trainer, "steps": steps},
        optimiser={**spec.optimiser, "warmup": round(spec.optimiser["warmup"] * share)},
    )
