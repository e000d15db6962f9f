"""Incremental: tasks arrive one after another, and the labels of earlier tasks are gone; what do these lose?"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError, unknown_name
from mtlbench.runs.plan import Case, Ending, MethodPlan, Plan, Result
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import Fault, Scenario, Scope, followed, is_count, lasting


@dataclass(frozen=True)
class Incremental(Scenario):
    """How much a method forgets when tasks arrive one after another (protocol of arXiv:2007.12540).

    A first run trains the tasks that are there from the beginning. For every task that arrives, a further run starts
    from the weights of the last one, with a fresh head, and trains on the labels of the new task alone. Earlier tasks
    are still scored. Their drop is relative to the same method before any task arrived. A method that reads other runs
    (`kd_mtl`) reads those of the earlier tasks again, and one more of the new task. A method that serves tasks by
    several networks (`single_task`, grouping) trains a network for the new task, and forgets nothing by construction;
    that of `computation_sharing` has the base of the others. A method may add tasks by its own plan or refuse to add
    any, see `MTLMethod.ARRIVALS`.

    Attributes:
        task: The task that arrives first.
        then: Further tasks in the order in which they arrive.
        steps: Steps of every run on a new task; None for the suite's own. A method's own plan keeps its steps.
    """

    then: Sequence[str] = ()
    steps: int | None = None

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from super().faults(scope)
        if not isinstance(self.then, (list, tuple)) or not all(isinstance(name, str) for name in self.then):
            yield "then", f"then must be a list of tasks; found {self.then!r}."
            return
        yield from (("then", unknown_name("task", name, scope.tasks)) for name in self.then if name not in scope.tasks)
        if len(set(self._arriving)) < len(self._arriving):
            yield "then", f"A task arrives once; found {', '.join(self._arriving)}."
        if len(set(scope.tasks) - set(self._arriving)) < 2:
            there = ", ".join(name for name in scope.tasks if name not in self._arriving) or "none"
            yield "", f"At least two tasks must be there from the beginning; found {there}. Let fewer tasks arrive."
        if self.steps is not None and not is_count(self.steps):
            yield "steps", f"steps must be a whole number of at least 1, or null; found {self.steps!r}."

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the case before any task arrives, and one after each arrival.

        Raises:
            MethodError: If the method cannot add a task.
        """
        if _arrivals(spec) == "none":
            raise MethodError(
                f"In the scenario incremental, a method adds tasks to what it has trained. {spec.label}: "
                f"{spec.method['name']} makes its network from finished runs of all tasks at once, and tunes it with "
                "the labels of all of them. Leave it out of methods."
            )
        yield Case(self._known(spec, 0), self._before)
        for count, column in enumerate(self._columns, 1):
            yield Case(self._known(spec, count), column, partial(self._plan, spec, count))

    def floor_cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the same tasks without a plan: without the image, there is nothing to forget."""
        for count, column in enumerate((self._before, *self._columns)):
            yield Case(self._known(spec, count), column)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the mean drop of the tasks that were there from the beginning, after each arrival."""
        return {
            "columns": list(self._columns),
            "base": self._before,
            "ignored": list(self._arriving),
            "text": f"{', then '.join(self._arriving)} are added one after another, each trained "
            + (f"for {self.steps} steps " if self.steps else "")
            + "on its own labels alone, from the weights of the run before; drop: the mean relative loss of the tasks "
            "that were there from the beginning, against the same method before any arrival",
        }

    @property
    def _arriving(self) -> tuple[str, ...]:
        return (self.task, *self.then)

    @property
    def _before(self) -> str:
        return "before any arrival"

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(f"+ {name}" for name in self._arriving)

    def _known(self, spec: RunSpec, count: int) -> RunSpec:
        """Returns the run on the tasks that are known after a number of arrivals, old ones first."""
        later = self._arriving[count:]
        first = [name for name in spec.tasks if name not in self._arriving]
        arrived = [name for name in self._arriving[:count] if name in spec.tasks and name not in later]
        return spec.with_tasks(*first, *arrived)

    def _plan(self, spec: RunSpec, count: int, method_plan: MethodPlan) -> Plan:
        """Follows the method's plan on the first tasks, then trains the arriving ones one by one."""
        if _arrivals(spec) == "plan":
            return (yield from method_plan(self._known(spec, count)))
        serving, trained = yield from followed(method_plan(self._known(spec, 0)))
        found = {name: run for name, (run, _) in trained.items()}
        for number, name in enumerate(self._arriving[:count], 1):
            served = [found[run] for run in dict.fromkeys(serving.values())]
            if len(served) > 1:
                alone = lasting(_alone(spec, name, served), self.steps)
                yield [alone]
                found, serving = {**found, alone.run_id: alone}, {**serving, name: alone.run_id}
                continue
            (last,), known = served, self._known(spec, number)
            silent = {task: {"count": 0} for task in known.tasks if task != name}
            start = {"run": last.run_id, "hash": last.hash, "related": None, "freeze": False}
            # Its last step counts: the best one would be chosen by labels of the earlier tasks.
            run = lasting(known, self.steps).with_labels({**known.data.get("labels", {}), **silent})
            run = replace(run, start=start, trainer={**run.trainer, "selection": "last"})
            if last.sources:
                run = yield from self._with_sources(run, spec, last.sources, found)
            yield [run]
            found, serving = {**found, run.run_id: run}, dict.fromkeys(run.tasks, run.run_id)
        return Ending(serving)

    def _with_sources(
        self, run: RunSpec, spec: RunSpec, earlier: Mapping[str, Mapping[str, str]], found: dict[str, RunSpec]
    ) -> Generator[list[RunSpec], list[Result], RunSpec]:
        """Trains the runs that a method reads for its new task as those of the earlier tasks; returns its run."""
        method = found[next(iter(earlier.values()))["run"]].method
        roles = registry.find(spec.method["path"]).roles(list(run.tasks))  # type: ignore[attr-defined]
        more = {
            role: lasting(spec.with_method(method).with_tasks(*tasks), self.steps)
            for role, tasks in roles.items()
            if role not in earlier
        }
        if more:
            yield list(more.values())
        return replace(run, sources={**earlier, **(run.with_sources(**more).sources or {})})


def _arrivals(spec: RunSpec) -> str:
    """Returns `MTLMethod.ARRIVALS` of a run's method; balancers train by continuing."""
    return str(getattr(registry.find(spec.method["path"]), "ARRIVALS", "continue"))


def _alone(spec: RunSpec, task: str, served: Sequence[RunSpec]) -> RunSpec:
    """Returns the run of a further network: one that reads what its siblings read, or else a single-task run."""
    sources = next((run.sources for run in served if run.sources), None)
    if sources:
        return replace(spec.with_tasks(task), sources=sources)
    return spec.with_method(registry.record("single_task")).with_tasks(task)
