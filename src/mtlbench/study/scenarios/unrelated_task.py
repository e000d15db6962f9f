"""Unrelated task: how much the other tasks lose when one is added to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope, distinct

LABELS: Mapping[str, Mapping[str, Any] | None] = {"true": None, "shuffled": {"shuffled": True}}
"""Rule on the added task's labels by name; see `mtlbench.data.label_rules`."""


@dataclass(frozen=True)
class UnrelatedTask(Scenario):
    """Whether a method protects tasks from one that does not help them (third claim of arXiv:2204.07689).

    Every method is trained without the task and with it. The drop of every other task is relative to the same method
    without it.

    Attributes:
        labels: ``"true"``: the task as it is. ``"shuffled"``: every image has the label of another image, so that
            nothing in the task is of use to the others, whatever it is about; needs images of one size.
    """

    labels: Sequence[str] = ("true",)

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from super().faults(scope)
        yield from distinct("labels", self.labels, lambda name: isinstance(name, str), f"{' or '.join(LABELS)}")
        for name in self.labels if isinstance(self.labels, (list, tuple)) else ():
            if isinstance(name, str) and name not in LABELS:
                yield "labels", unknown_name("kind of labels", name, LABELS)
        if len(scope.tasks) < 2:
            yield "task", f"There must be another task to look at; the suite has only {self.task}."

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the case without the task, and those with it."""
        yield Case(spec.with_tasks(*(name for name in spec.tasks if name != self.task)), self._without)
        for name in self.labels:
            rule = LABELS[name]
            yield Case(spec.with_labels({self.task: rule} if rule else {}), self._with(name))

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the mean drop of the others in every case with the task."""
        return {
            "columns": [self._with(name) for name in self.labels],
            "base": self._without,
            "ignored": self.task,
            "text": f"the task {self.task} is added to the other tasks; drop: their mean relative loss, each "
            "against the same method without it",
        }

    @property
    def _without(self) -> str:
        return f"without {self.task}"

    def _with(self, labels: str) -> str:
        return f"+ {self.task}" + (f", {labels} labels" if labels != "true" else "")
