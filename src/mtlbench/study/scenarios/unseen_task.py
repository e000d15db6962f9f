"""Unseen task: held out of training, then added from a few examples, with the gates of a related task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.runs.plan import Case, Ending, MethodPlan, Plan, Result, Serving
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import (
    Fault,
    Scenario,
    Scope,
    distinct,
    followed,
    is_count,
    is_positive,
    lasting,
)


@dataclass(frozen=True)
class UnseenTask(Scenario):
    """How few examples a new task needs (second claim of arXiv:2204.07689).

    A first run trains all other tasks. A second one starts from its weights and trains the task alone, on K labelled
    images, with a fresh head. Where a task of the first run owns gates, the new task's begin as those of a related
    one; a gate on descriptions has the new task's own from the start, and a network without gates needs none.

    Every method tries the same number of follow-up runs, one per related task and number of steps, and all of them see
    the same K labels. The choice among them is by these labels alone: each candidate is trained once per fold, without
    the examples of that fold, and scored on them. The one with the best mean is trained on all K. A method for which
    the related task makes no difference tries as many draws of the new head. Labels of the validation split have no
    part in it.

    Attributes:
        examples: Numbers K of labelled images.
        related: Tasks whose gates are tried. For methods with one run per task, also the runs to start from.
        steps: Steps of the follow-up run, or several numbers to try.
        lr: Its learning rate.
        folds: Parts into which the K examples are cut for the choice; with as many as examples, or more, each part is
            one example. Without effect if there is one candidate.
        freeze_routers: Whether routers, the new task's gates included, stay as they are in the follow-up run.
        arguments: Hyper-parameters of the follow-up run, for the methods that have them.
        scratch: Labels of methods that are also trained on the K examples from fresh weights, with the suite's own
            steps and learning rate. These rows choose nothing.
    """

    related: Sequence[str]
    examples: Sequence[int] = (8, 32, 128)
    steps: int | Sequence[int] = 100
    lr: float = 1e-3
    folds: int = 2
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
        if isinstance(self.steps, (list, tuple)):
            yield from distinct("steps", self.steps, is_count, "whole numbers of at least 1")
        elif not is_count(self.steps):
            yield "steps", f"steps must be a whole number of at least 1, or a list of them; found {self.steps!r}."
        yield from self._faults_of_choice()
        if not is_positive(self.lr):
            yield "lr", f"lr must be above 0; found {self.lr!r}."
        if not isinstance(self.freeze_routers, bool):
            yield "freeze_routers", f"freeze_routers must be true or false; found {self.freeze_routers!r}."
        if self.arguments is not None and not isinstance(self.arguments, Mapping):
            yield "arguments", f"arguments must map hyper-parameters to values; found {self.arguments!r}."
        for label in _listed(self.scratch):
            if label not in scope.labels:
                yield "scratch", unknown_name("label of a method", str(label), scope.labels)

    def _faults_of_choice(self) -> Iterator[Fault]:
        if not is_count(self.folds) or self.folds < 2:
            yield "folds", f"folds must be a whole number of at least 2; found {self.folds!r}."
        if len(_listed(self.related)) * len(self._lengths) > 1 and 1 in _listed(self.examples):
            fault = (
                "A choice among several follow-up runs holds out some examples, so there must be at least 2 of them."
            )
            yield "examples", f"{fault} Found 1. Leave it out, or name one related task and one number of steps."

    def images_needed(self) -> int:
        """Returns the largest number of examples."""
        return max(self.examples)

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per number of examples, and another from scratch where asked for."""
        for few, column in self._few(spec):
            yield Case(self._second(few, self._lengths[0]), column, partial(self._plan, spec, few))
            if spec.label in self.scratch:
                yield Case(replace(few, label=f"{spec.label} from scratch"), column)

    def floor_cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per number of examples: without the image, there is nothing to start from."""
        yield from (Case(few, column) for few, column in self._few(spec))

    def _few(self, spec: RunSpec) -> Iterator[tuple[RunSpec, str]]:
        """Yields the run on the new task alone, and the condition, per number of examples.

        Its last step counts: the best one would be chosen by the labels of the validation split.
        """
        alone = replace(spec.with_tasks(self.task), trainer={**spec.trainer, "selection": "last"})
        for examples in self.examples:
            yield alone.with_labels({self.task: {"count": examples}}), _column(examples)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the new task's score for every number of examples."""
        tried = len(self.related) * len(self._lengths)
        choice = (
            f"; of {tried} follow-up runs of every method, the best in {self.folds}-fold cross-validation on the K "
            "examples is trained on all of them"
        )
        return {
            "columns": [_column(examples) for examples in self.examples],
            "target": self.task,
            "text": f"the task {self.task} is held out, then trained alone on K examples for "
            f"{' or '.join(map(str, self._lengths))} steps at learning rate {self.lr:g}; gates begin as those of "
            + " or ".join(self.related)
            + (" and stay frozen" if self.freeze_routers else "")
            + (choice if tried > 1 else ""),
        }

    @property
    def _lengths(self) -> Sequence[Any]:
        return self.steps if isinstance(self.steps, (list, tuple)) else (self.steps,)

    def _second(self, few: RunSpec, steps: int) -> RunSpec:
        """Returns the run on K examples, without its start."""
        arguments = dict(few.method["arguments"])
        arguments |= {key: value for key, value in (self.arguments or {}).items() if key in arguments}
        second = replace(lasting(few, steps), method={**few.method, "arguments": arguments})
        return replace(second, optimiser={**second.optimiser, "lr": self.lr})

    def _plan(self, spec: RunSpec, few: RunSpec, method_plan: MethodPlan) -> Plan:
        others = spec.with_tasks(*(name for name in spec.tasks if name != self.task))
        serving, found = yield from followed(method_plan(others))
        starts = list(self._starts(serving, found))
        seconds = [replace(self._second(few, steps), start=start) for steps in self._lengths for start in starts]
        best, scores = 0, [math.nan]
        if len(seconds) > 1:
            folds = min(self.folds, few.data["labels"][self.task]["count"])
            results = yield [self._part(second, fold, folds) for second in seconds for fold in range(folds)]
            scores = [self._score(few, results[at : at + folds]) for at in range(0, len(results), folds)]
            best = self._best(few, scores)
        yield [seconds[best]]
        tried = [
            {"steps": second.trainer["steps"], **_short(second.start), "score": score if math.isfinite(score) else None}
            for second, score in zip(seconds, scores, strict=True)
        ]
        return Ending({self.task: seconds[best].run_id}, {"kind": "unseen_task", "tried": tried, "best": best})

    def _starts(self, serving: Serving, found: Mapping[str, tuple[RunSpec, Result]]) -> Iterator[Mapping[str, Any]]:
        """Yields the start of a follow-up run per related task; each has a draw of the new head of its own."""
        for draw, name in enumerate(self.related):
            first, result = found[serving[name]]
            related = name if result.get("task_gates") else None
            start = {"run": first.run_id, "hash": first.hash, "related": related, "freeze": self.freeze_routers}
            yield {**start, "draw": draw} if draw else start

    def _part(self, second: RunSpec, fold: int, folds: int) -> RunSpec:
        """Returns a follow-up run without the examples of a fold, which is scored on these and sees no other labels."""
        rule = {**second.data["labels"][self.task], "fold": [fold, folds]}
        return replace(second.with_labels({self.task: rule}), trainer={**second.trainer, "evaluate_every": 0})

    def _score(self, few: RunSpec, results: Sequence[Result]) -> float:
        """Returns the mean score over folds; not finite if one of them is not."""
        protocol = few.tasks[self.task]["protocols"][0]["id"]
        found = [((result.get("scores") or {}).get(self.task) or {}).get(protocol) for result in results]
        return sum(math.nan if value is None else value for value in found) / len(found)

    def _best(self, few: RunSpec, scores: Sequence[float]) -> int:
        """Returns the place of the best score, or of the first of equals; one that is not finite is never the best."""
        sign = 1 if few.tasks[self.task]["protocols"][0]["higher_is_better"] else -1
        merits = [sign * value if math.isfinite(value) else -math.inf for value in scores]
        return merits.index(max(merits))


def _short(start: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what tells the starts of one method and seed apart."""
    return {key: value for key, value in (start or {}).items() if key in ("run", "related", "draw")}


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, (list, tuple)) else ()


def _column(examples: int) -> str:
    return f"{examples} examples" if examples > 1 else "1 example"
