"""Shapes of the records that are read from a results folder. A file of another shape counts as damaged.

Someone else may have written the file, or edited it: what reads a record relies on its shape and checks nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtlbench.errors import path_part_fault

Shape = Callable[[Any], bool]


def text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def whole(value: Any) -> bool:
    """Whether a value is a whole number that a machine counts with."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number(value: Any) -> bool:
    """Whether a value is a number; it need not be finite."""
    return isinstance(value, float) or whole(value)


def truth(value: Any) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, bool)


def run(value: Any) -> bool:
    """Whether a value can be the name of a run's folder."""
    return isinstance(value, str) and not path_part_fault(value)


def optional(shape: Shape) -> Shape:
    """Return the shape of a value that may be None."""
    return lambda value: value is None or shape(value)


def listed(shape: Shape) -> Shape:
    """Return the shape of a list whose items have a shape."""
    return lambda value: isinstance(value, list) and all(map(shape, value))


def named(shape: Shape) -> Shape:
    """Return the shape of a mapping whose values have a shape."""
    return lambda value: isinstance(value, dict) and all(map(shape, value.values()))


def record(needed: Mapping[str, Shape], more: Mapping[str, Shape] | None = None) -> Shape:
    """Return the shape of a mapping with some keys; those of ``more`` may be absent or None, others may be anything."""

    def fits(value: Any) -> bool:
        if not isinstance(value, dict) or not all(key in value and shape(value[key]) for key, shape in needed.items()):
            return False
        return all(value.get(key) is None or shape(value[key]) for key, shape in (more or {}).items())

    return fits


def table(value: Any) -> bool:
    """Whether a value is a list of rows of numbers or None, all of one length."""
    return listed(listed(optional(number)))(value) and len({len(row) for row in value}) < 2


def filled(value: Any) -> bool:
    """Whether a value is a table with at least one number and no None."""
    return bool(value) and listed(listed(number))(value) and table(value) and bool(value[0])


SCORES = named(named(optional(number)))
COSTS = ("seconds_per_step", "seconds_per_step_p95", "train_seconds", "peak_memory_gib", "parameters", "flops")
COST = record({}, {**dict.fromkeys(COSTS, number), "devices": whole, "threads": whole})
RESULT = record(
    {},
    {"scores": SCORES, "cost": COST, "validation": SCORES, "steps": whole, "seed": whole, "tasks": listed(text),
     "split": text, "run_id": text, "label": text, "method": text, "conflict_share": number},
)  # fmt: skip
"""``result.json``."""

SEALED = record({"hash": text}, {"digest": text, "files": named(record({"bytes": whole, "sha256": text}))})
"""The identity of a result and its seal, see `mtlbench.runs.seal`."""


def mapping(value: Any) -> bool:
    """Whether a value maps names to anything."""
    return isinstance(value, dict)


SPEC = record(
    {"suite": text, "label": text, "seed": whole, "method": mapping, "tasks": named(mapping),
     "data": record({}, {"module": text, "options": mapping, "labels": mapping}),
     "model": record({}, {"encoder": text, "encoder_options": mapping, "image_size": listed(whole),
                          "inputs": named(whole)}),
     "optimiser": mapping, "trainer": mapping},
    {"local": mapping, "start": mapping, "sources": named(named(text))},
)  # fmt: skip
"""``spec.json``."""

_PROTOCOL = record({"id": text, "higher_is_better": truth}, {"unit": text})
_TASK = record(
    {"protocols": listed(_PROTOCOL), "in_delta_m": truth}, {"class_names": listed(text), "kind": text, "scale": number}
)
_AFFINITY = record({"tasks": listed(text), "values": table}, {"what": text})
_PREDICTED = record({"group": listed(text), "values": named(optional(number))})
_GROUPING = record(
    {"groups": listed(listed(text)), "serves": named(whole)},
    {"search_runs": listed(text), "small_runs": listed(text), "predicted": listed(_PREDICTED), "affinity": _AFFINITY,
     "note": text},
)  # fmt: skip


_TRIED = record({"steps": whole}, {"related": text, "draw": whole, "score": number})
_CHOICE = record({"tried": listed(_TRIED), "best": whole})


def _choice(value: Any) -> bool:
    return _CHOICE(value) and 0 <= value["best"] < len(value["tried"])


_CHILD = record(
    {"run": text, "parent": text, "task": text, "generation": whole, "trained": listed(text), "hyper": mapping},
    {"kept": truth, "score": number},
)
_EVOLUTION = record(
    {"lineage": listed(_CHILD), "growth": listed(record({"task": text, "parameters": number})), "whole": number},
    {"note": text},
)
_OF_PLANS: Mapping[str, Shape] = {"grouping": _GROUPING, "unseen_task": _choice, "evolution": _EVOLUTION}


def _plan_record(value: Any) -> bool:
    return mapping(value) and _OF_PLANS.get(str(value.get("kind")), mapping)(value)


_TRANSFER = record({"tasks": named(whole), "all": text, "own": named(text)})
_SCENARIO = record(
    {"text": text, "columns": listed(text)},
    {"target": text, "base": text, "ignored": lambda value: text(value) or listed(text)(value), "alone": text,
     "difference": text, "of": text, "transfer": _TRANSFER},
)  # fmt: skip
ROW = record(
    {"label": text, "seed": whole, "runs": listed(run), "serving": named(run)},
    {"method": text, "condition": text, "error": text, "stages": listed(listed(run)), "record": _plan_record},
)
STUDY = record(
    {"suite": text, "rows": listed(ROW)},
    {"title": text, "overrides": listed(text), "baseline": text, "selection": text, "split": text, "search": text,
     "seeds": listed(whole), "confirm": listed(whole), "tasks": named(_TASK), "named": listed(text),
     "encoders": listed(text), "key": text,
     "removed": listed(record({"task": text, "reason": text})), "run_tasks": named(listed(text)),
     "scenario": _SCENARIO},
)  # fmt: skip
"""``study.json``."""

NAMED = record({"pair": listed(text), "version": lambda value: True}, {"when": text, "runs": whole})
LOOK = record({"runs": listed(text)})
"""Entries of ``registration.json``."""

_LAYER = record({"probability": filled, "load": filled})
EXPERTS = record({"tasks": listed(text), "layers": lambda value: bool(value) and named(_LAYER)(value)})
"""Part ``experts`` of ``summary.json``."""

_POINT = record({"threshold": number, "scores": SCORES}, {"flops": number})
SHARING = record(
    {"threshold": number, "storage": record({"parameters": number}), "curves": record({"scores": listed(_POINT)})}
)
"""Part ``sharing`` of ``summary.json``."""

REGIMES = record(
    {"cost": number, "serial": truth, "chosen": listed(whole),
     "utility": record({"serial": number, "parallel": number})}
)  # fmt: skip
"""Part ``regimes`` of ``summary.json``."""
