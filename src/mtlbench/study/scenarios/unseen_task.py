"""Unseen task: held out of training, then added from a few examples, with the gates of a related task."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.runs.plan import Case, Ending, MethodPlan, Plan, Result, Serving
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope, distinct, is_count, is_positive


@dataclass(frozen=True)
class UnseenTask(Scenario):
    """How few examples a new task needs (second claim of arXiv:2204.07689).

    A first run trains all other tasks. A second one starts from its weights and trains the task alone, on K labelled
    images, with a fresh head. Where a task of the first run owns gates, the new task's begin as those of a related
    one; a gate on descriptions has the new task's own from the start, and a network without gates needs none.

    Attributes:
        examples: Numbers K of labelled images.
        related: Tasks whose gates are tried. Of several, each is trained and the best on the validation split is
            reported. For methods with one run per task, also the runs to start from.
        steps: Steps of the second run.
        lr: Its learning rate.
        freeze_routers: Whether routers, the new task's gates included, stay as they are in the second run.
        arguments: Hyper-parameters of the second run, for the methods that have them.
        scratch: Labels of methods that are also trained on the K examples from fresh weights, with the suite's own
            steps and learning rate.
    """

    related: Sequence[str]
    examples: Sequence[int] = (8, 32, 128)
    steps: int = 100
    lr: float = 1e-3
    freeze_routers: bool = False
    arguments: Mapping[str, Any] | None = None
    scratch: Sequence[str] = ()

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from super().faults(scope)
        yield from distinct("examples", self.examples, is_count, "whole numbers of at least 1")
        yield from distinct("related", self.related, lambda name: isinstance(name, str), "tasks")
        others = [name for name in scope.tasks if name != self.task]
        yield from (("related", unknown_name("task", str(n), others)) for n in _listed(self.related) if n not in others)
        if len(_listed(self.related)) > 1 and scope.splits[-1] == "val":
            yield "related", "The best of several is chosen on the validation split, which this data reports. Name one."
        if not is_count(self.steps):
            yield "steps", f"steps must be a whole number of at least 1; found {self.steps!r}."
        if not is_positive(self.lr):
            yield "lr", f"lr must be above 0; found {self.lr!r}."
        if not isinstance(self.freeze_routers, bool):
            yield "freeze_routers", f"freeze_routers must be true or false; found {self.freeze_routers!r}."
        if self.arguments is not None and not isinstance(self.arguments, Mapping):
            yield "arguments", f"arguments must map hyper-parameters to values; found {self.arguments!r}."
        for label in _listed(self.scratch):
            if label not in scope.labels:
                yield "scratch", unknown_name("label of a method", str(label), scope.labels)

    def images_needed(self) -> int:
        """Returns the largest number of examples."""
        return max(self.examples)

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per number of examples, and another from scratch where asked for."""
        for few, column in self._few(spec):
            yield Case(self._second(few), column, partial(self._plan, spec, self._second(few)))
            if spec.label in self.scratch:
                yield Case(replace(few, label=f"{spec.label} from scratch"), column)

    def floor_cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per number of examples: without the image, there is nothing to start from."""
        yield from (Case(few, column) for few, column in self._few(spec))

    def _few(self, spec: RunSpec) -> Iterator[tuple[RunSpec, str]]:
        """Yields the run on the new task alone, and the condition, per number of examples."""
        for examples in self.examples:
            yield spec.with_tasks(self.task).with_labels({self.task: {"count": examples}}), _column(examples)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the new task's score for every number of examples."""
        return {
            "columns": [_column(examples) for examples in self.examples],
            "target": self.task,
            "text": f"the task {self.task} is held out, then trained alone on K examples for {self.steps} steps at "
            f"learning rate {self.lr:g}; gates begin as those of {' or '.join(self.related)}"
            + (" and stay frozen" if self.freeze_routers else ""),
        }

    def _second(self, few: RunSpec) -> RunSpec:
        """Returns the run on K examples, without its start."""
        trainer, arguments = few.trainer, dict(few.method["arguments"])
        arguments |= {key: value for key, value in (self.arguments or {}).items() if key in arguments}
        warmup = round(few.optimiser["warmup"] * min(1, self.steps / trainer["steps"]))
        return replace(
            few,
            method={**few.method, "arguments": arguments},
            optimiser={**few.optimiser, "lr": self.lr, "warmup": warmup},
            trainer={**trainer, "steps": self.steps, "evaluate_every": min(trainer["evaluate_every"], self.steps)},
        )

    def _plan(self, spec: RunSpec, second: RunSpec, method_plan: MethodPlan) -> Plan:
        others = spec.with_tasks(*(name for name in spec.tasks if name != self.task))
        serving, found = yield from _followed(method_plan(others))
        starts: dict[tuple[str, str | None], None] = {}
        for name in self.related:
            first, result = found[serving[name]]
            starts[serving[name], name if result.get("task_gates") else None] = None
        runs = [self._started(second, found[run_id][0], related) for run_id, related in starts]
        results = yield runs
        best = max(range(len(runs)), key=lambda index: self._merit(second, results[index]))
        return {self.task: runs[best].run_id}

    def _started(self, second: RunSpec, first: RunSpec, related: str | None) -> RunSpec:
        start = {"run": first.run_id, "hash": first.hash, "related": related, "freeze": self.freeze_routers}
        return replace(second, start=start)

    def _merit(self, spec: RunSpec, result: Result) -> float:
        """Returns the validation score, higher is better; a run without a finite one is never the best."""
        protocol = spec.tasks[self.task]["protocols"][0]
        value = ((result.get("validation") or {}).get(self.task) or {}).get(protocol["id"], math.nan)
        return (value if protocol["higher_is_better"] else -value) if math.isfinite(value) else -math.inf


def _followed(plan: Plan) -> Generator[list[RunSpec], list[Result], tuple[Serving, dict[str, tuple[RunSpec, Result]]]]:
    """Follows a plan to its end and returns also its runs with their results."""
    found: dict[str, tuple[RunSpec, Result]] = {}
    runs = next(plan)
    while True:
        results = yield runs
        found |= {run.run_id: (run, result) for run, result in zip(runs, results, strict=True)}
        try:
            runs = plan.send(results)
        except StopIteration as end:
            return Ending.of(end.value).serving, found


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, (list, tuple)) else ()


def _column(examples: int) -> str:
    return f"{examples} examples" if examples > 1 else "1 example"
