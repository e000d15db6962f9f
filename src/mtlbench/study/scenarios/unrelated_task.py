"""Unrelated task: how much the other tasks lose when a related task is added to them, and when an unrelated one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope


@dataclass(frozen=True)
class UnrelatedTask(Scenario):
    """Whether a method protects tasks from one that does not help them (third claim of arXiv:2204.07689).

    Every method is trained on the other tasks without the added one, with a related task, and with an unrelated one.
    The unrelated task is so by construction: every image has the label of another image, which says nothing about its
    own. By default it is the related task with its labels shuffled, so that head, loss and its scale are the same in
    both conditions, and only the relation is lost. The drop of every other task is relative to the same method without
    an added task. The difference between both drops is what the relation is worth.

    Attributes:
        task: The related task, with its own labels.
        unrelated: The task whose labels are shuffled; ``""`` for the related one. Its images must be of one size.
    """

    unrelated: str = ""

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from super().faults(scope)
        if not isinstance(self.unrelated, str):
            yield "unrelated", f"unrelated must name a task, or be empty for {self.task}. Found {self.unrelated!r}."
        elif self.unrelated and self.unrelated not in scope.tasks:
            yield "unrelated", unknown_name("task", self.unrelated, scope.tasks)
        elif len(set(scope.tasks) - {self.task, self._shuffled}) < 1:
            added = " and ".join(dict.fromkeys((self.task, self._shuffled)))
            yield "task", f"There must be another task to look at; the suite has only {added}."

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the case without an added task, and those with one."""
        others = [name for name in spec.tasks if name not in (self.task, self._shuffled)]

        def beside(added: str) -> RunSpec:
            return spec.with_tasks(*(name for name in spec.tasks if name in (*others, added)))

        yield Case(spec.with_tasks(*others), self._without)
        yield Case(beside(self.task), self._related)
        yield Case(beside(self._shuffled).with_labels({self._shuffled: {"shuffled": True}}), self._unrelated)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the mean drop of the others in both cases with a task, and the difference."""
        added = list(dict.fromkeys((self.task, self._shuffled)))
        return {
            "columns": [self._related, self._unrelated],
            "base": self._without,
            "ignored": added,
            "difference": "unrelated − related",
            "text": f"a task is added to the other tasks: {self.task}, or {self._shuffled} with the labels of other "
            "images; drop: the mean relative loss of the others, each against the same method without an added task",
        }

    @property
    def _shuffled(self) -> str:
        return self.unrelated or self.task

    @property
    def _without(self) -> str:
        return "without " + " and ".join(dict.fromkeys((self.task, self._shuffled)))

    @property
    def _related(self) -> str:
        return f"+ {self.task}"

    @property
    def _unrelated(self) -> str:
        return f"+ {self._shuffled}, shuffled labels"
