"""Low resource: one task keeps a small share of its training labels, the others keep all of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope, distinct, is_positive

ALONE = "single_task"
"""The method that trains every task alone."""


@dataclass(frozen=True)
class LowResource(Scenario):
    """How much a task with limited labels gains from the others (first claim of arXiv:2204.07689).

    Methods of one seed keep the labels of the same images, and those of a smaller share are among those of a larger
    one. Validation and test stay whole. Whether the task gains anything from the others shows beside a row of
    `single_task`, which trains this task alone on the same labels: the scenario trains no other task for it.

    Attributes:
        fractions: Shares of the training images that keep their label of ``task``, in (0, 1]; 1 changes nothing.
    """

    fractions: Sequence[float] = (0.01, 0.05, 0.1, 0.25)

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from super().faults(scope)
        yield from distinct("fractions", self.fractions, lambda r: is_positive(r) and r <= 1, "shares in (0, 1]")

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case per share."""
        for share in self.fractions:
            labels = {self.task: {"share": share}} if share < 1 else {}
            yield Case(self._needed(spec).with_labels(labels), _percent(share))

    def _needed(self, spec: RunSpec) -> RunSpec:
        """Returns the run on the tasks that the task's score depends on."""
        return spec.with_tasks(self.task) if spec.method["name"] == ALONE else spec

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the target's score at every share."""
        return {
            "columns": [_percent(share) for share in self.fractions],
            "target": self.task,
            "alone": ALONE,
            "text": f"the task {self.task} keeps the labels of a share of the training images, other tasks keep all",
        }


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
