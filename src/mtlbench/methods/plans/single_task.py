"""Single task: one network per task, the reference of Δm."""

from __future__ import annotations

from mtlbench.method import MTLMethod
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec


class SingleTask(MTLMethod):
    """One run per task, each with its own network and the full schedule and data.

    Rule: min_θ L_i for every task i separately.

    Differences from common practice: none. The runs are ordinary cached runs, trained once per seed even if other
    methods use them as teachers or bases.

    Example:
        >>> from mtlbench.registry import find
        >>> find("single_task").__name__
        'SingleTask'
    """

    TAXONOMY = "baseline"

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields one run per task."""
        runs = {name: spec.with_tasks(name) for name in spec.tasks}
        yield list(runs.values())
        return {name: run.run_id for name, run in runs.items()}
