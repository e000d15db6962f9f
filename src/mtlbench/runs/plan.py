"""Plans: the runs that a method needs, and how one run's result decides the next. Needs no torch.

A plan is a generator. It yields a list of run specifications, receives their results (a list in the same order),
and returns which run serves which task. Finished runs answer at once from the store, so that resuming a study is
replaying its plans.

A result is the content of ``result.json``: ``scores`` of the reported split, ``validation`` (scores by which a plan may
choose; None if the data has no other split), ``cost``, and ``summary``, the method's own record of the run.

A plan fails with the first of its runs that fails, unless it yields them as `Trials`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtlbench.errors import MethodError
from mtlbench.runs.spec import RunSpec

Result = dict[str, Any]
Serving = dict[str, str]
Plan = Generator[list[RunSpec], list[Result], "Serving | Ending"]
MethodPlan = Callable[[RunSpec], Plan]
"""Returns the plan that a run's method has for it."""


class Trials(list[RunSpec]):
    """Runs of a search, which may fail: the result of a failed run is ``{"error": ...}``, with its ``error.json``."""


@dataclass(frozen=True)
class Ending:
    """What a plan returns if it records more than which run serves which task.

    Attributes:
        serving: Run id by task.
        record: Plain values for the report, stored with the row in ``study.json``.
    """

    serving: Serving
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Ending:
        """Returns an ending unchanged, and turns a serving into an ending without a record."""
        return value if isinstance(value, Ending) else cls(value)


@dataclass(frozen=True)
class Case:
    """One line of a study: one method with one seed under one condition.

    Attributes:
        spec: The last run; its tasks are scored, and its label is the row.
        condition: What varies besides method and seed; ``""`` if nothing does.
        plan: Returns the runs that lead to it, given the plans of methods. None: the method's own plan.
    """

    spec: RunSpec
    condition: str = ""
    plan: Callable[[MethodPlan], Plan] | None = None

    def begin(self, method_plan: MethodPlan) -> Plan:
        """Returns the plan: the method's own, unless the case has another."""
        return self.plan(method_plan) if self.plan else method_plan(self.spec)


def one_run(spec: RunSpec) -> Plan:
    """Yield the plan of most methods: a single run, which serves all tasks."""
    yield [spec]
    return dict.fromkeys(spec.tasks, spec.run_id)


def foreseen(plan: Plan) -> tuple[list[RunSpec], Serving]:
    """Follow a plan whose runs do not depend on results; return its runs, and which of them serves which task.

    Args:
        plan: A plan that has not begun. It receives empty results.

    Raises:
        MethodError: If the plan looks at a result.
    """
    runs: list[RunSpec] = []
    try:
        stage = next(plan)
        while True:
            runs += stage
            stage = plan.send([{} for _ in stage])
    except StopIteration as end:
        return runs, Ending.of(end.value).serving
    except Exception as error:
        raise MethodError(
            "The runs of the row must be known beforehand. Its plan chooses them by results, so its cost is known only "
            "when it has ended: see the table of costs of the leaderboard."
        ) from error
