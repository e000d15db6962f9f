"""The bench: runs the plans of a study through an executor. It is idempotent: only missing runs are trained."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.bench.executors.base import Executor
from mtlbench.errors import ExitCode, MethodError, MtlbenchError, foreign_code, place_of
from mtlbench.runs.plan import Ending, Plan, Trials
from mtlbench.runs.registration import register
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, sweep
from mtlbench.study.record import remember
from mtlbench.study.resolve import Study
from mtlbench.study.validation import check_run

RETRIES = 2
"""How often a run whose process ended without a result is resumed from its checkpoint within one bench."""


@dataclass
class Member:
    """One line of the study: its plan and its progress.

    Attributes:
        spec: The run that the suite names.
        plan: The method's plan for it.
        stages: Runs that the plan has yielded so far, by stage; it waits for the last stage.
        ending: What the plan returned, or None.
        error: Why the plan broke off although its runs were done.
        failed: Whether the plan has stopped before its end.
    """

    spec: RunSpec
    plan: Plan
    stages: list[list[RunSpec]] = field(default_factory=list)
    ending: Ending | None = None
    error: str = ""
    failed: bool = False

    @property
    def open(self) -> bool:
        """Whether the plan has neither ended nor failed."""
        return self.ending is None and not self.failed

    @property
    def waiting(self) -> list[RunSpec]:
        """The runs that the plan waits for."""
        return self.stages[-1] if self.stages else []

    @property
    def seen(self) -> list[RunSpec]:
        """All runs that the plan has yielded."""
        return [spec for stage in self.stages for spec in stage]

    @property
    def trials(self) -> list[str]:
        """The runs of a search among them, which may fail."""
        return [spec.run_id for stage in self.stages if isinstance(stage, Trials) for spec in stage]

    def step(self, results: list[dict[str, Any]]) -> None:
        """Send the plan the results that it waits for, and take the runs that it yields next.

        Raises:
            MethodError: If the plan breaks the rules.
        """
        try:
            runs = self.plan.send(results) if self.stages else next(self.plan)
        except StopIteration as end:
            self.ending = _checked_ending(self, end.value)
            return
        self.stages.append(_checked_runs(self, runs))

    def written(self) -> dict[str, Any]:
        """Return the entry of this line in the study's record."""
        ending = self.ending or Ending({})
        more: dict[str, Any] = {"record": dict(ending.record)} if ending.record else {}
        more |= {"trials": trials} if (trials := self.trials) else {}
        return {
            "stages": [[spec.run_id for spec in stage] for stage in self.stages],
            "serving": ending.serving,
            "runs": [spec.run_id for spec in self.seen],
            **more,
            **({"error": self.error} if self.error else {}),
        }


class Bench:
    """Runs a study.

    Args:
        root: ``results/<suite>``.
        study: What to run.
        executor: Where to run it; None trains nothing (``DRY=1``).
        retry: Run failed runs again.
        record: Whether this becomes the folder's current study; a dry run leaves the current one in place.
        watch: Called about once a second with this bench, to show progress.
        patience: Seconds without a run to start after which the bench ends although other benches still train runs
            of the study. One of several benches on a cluster need not hold its machine until the last run ends.

    Attributes:
        left: Runs that other benches still trained when this one had lost its patience.
    """

    def __init__(
        self,
        root: Path,
        study: Study,
        executor: Executor | None,
        *,
        retry: bool = False,
        record: bool = True,
        watch: Callable[[Bench], None] = lambda bench: None,
        patience: float = math.inf,
    ):
        self.root, self.study, self.executor, self.retry, self.watch = root, study, executor, retry, watch
        self.record, self.patience = record, patience
        self.left: list[str] = []
        self.members = [Member(case.spec, case.begin(_plan_of)) for case in study.cases]
        self.losses: dict[str, int] = {}
        self.attempted: set[str] = set()
        self._done: set[str] = set()
        self._round: dict[str, str] | None = None
        self._checked: set[str] = set()
        self.advance()

    def specs(self) -> dict[str, RunSpec]:
        """Return every run known so far by id; a run that several plans share appears once."""
        return {spec.run_id: spec for member in self.members for spec in member.seen}

    def state(self, run_id: str) -> str:
        """Return a run's state on disk. A finished run stays finished, and others are read once in a round."""
        if run_id in self._done:
            return "done"
        if self._round is not None and run_id in self._round:
            return self._round[run_id]
        state = RunFolder(self.root, run_id).state()
        if state == "done":
            self._done.add(run_id)
        if self._round is not None:
            self._round[run_id] = state
        return state

    def states(self) -> dict[str, str]:
        """Returns the state of every known run."""
        return {run_id: self.state(run_id) for run_id in self.specs()}

    def run(self) -> dict[str, str]:
        """Run everything that is missing and return the final states. A failed run does not end the others."""
        if self.executor is None:
            return self.states()
        for folder in (self.root, self.root / "studies", *self.root.glob("*-s*-*/")):
            sweep(folder)
        finished = sum(state == "done" for state in self.states().values())
        register(self.root, self.study.record, finished)
        busy = time.monotonic()
        try:
            while True:
                self._round = {}
                self._take_in()
                self.advance()
                self._start()
                self.watch(self)
                if self.executor.running or self._wanted():
                    busy = time.monotonic()
                else:
                    self.left = self._elsewhere()
                    if not self.left or time.monotonic() - busy >= self.patience:
                        return self.states()
                self.executor.wait(0.05 if self._wanted() and self.executor.free else 0.3)
        finally:
            self._round = None
            self.executor.stop()

    def advance(self) -> None:
        """Advance every plan whose awaited results are there, and remember the study if there was any."""
        if not self._advance_all() and "run_tasks" in self.study.record:
            return
        for row, member in zip(self.study.record["rows"], self.members, strict=True):
            row.update(member.written())
        self.study.record["run_tasks"] = {run_id: list(spec.tasks) for run_id, spec in self.specs().items()}
        if self.record:
            remember(self.root, self.study.record)

    def _advance_all(self) -> bool:
        progressed = False
        while any([self._advance(member) for member in self.members if member.open]):
            progressed = True
        return progressed

    def _advance(self, member: Member) -> bool:
        states = [self.state(spec.run_id) for spec in member.waiting]
        trials = isinstance(member.waiting, Trials)
        lost = "failed" in states and not (self.retry and self._retriable(member))
        if lost and not trials:
            member.failed = all(state in ("done", "failed") for state in states)
            return False
        if any(state != "done" and not (lost and state == "failed") for state in states):
            return False
        stages = len(member.stages)
        try:
            if not stages:  # The suite's own run: a plan may reach it only after hours of other runs.
                self._check(member.spec)
            member.step([self._outcome(spec) for spec in member.waiting])
            for spec in () if isinstance(member.waiting, Trials) else member.waiting:
                self._check(spec)
        except Exception as error:
            known = isinstance(error, MtlbenchError)
            text = str(error) if known else f"{type(error).__name__} in the plan: {error}{place_of(error)}"
            if not stages:  # Nothing was trained for it yet, so the suite is at fault.
                if known:
                    raise
                raise MethodError(f"{member.spec.label}: {text}") from error
            member.failed, member.ending = True, None
            del member.stages[stages:]  # A refused list of runs is no stage.
            member.error = text
        return True

    def _outcome(self, spec: RunSpec) -> dict[str, Any]:
        """Returns what a plan receives for a run that it waits for."""
        folder = RunFolder(self.root, spec.run_id)
        if self.state(spec.run_id) != "done":
            return {"error": folder.error()}
        if self.record and folder.mend(spec):
            print(f"spec.json of {spec.run_id} was damaged and is written anew; its result is whole.", flush=True)
        return folder.outcome()

    def _check(self, spec: RunSpec) -> None:
        """Refuse a run that cannot be built, once for all seeds."""
        kind = json.dumps([spec.method, list(spec.tasks), spec.model], sort_keys=True)
        if kind not in self._checked and self.state(spec.run_id) == "todo":
            self._checked.add(kind)
            check_run(spec)

    def _retriable(self, member: Member) -> bool:
        return any(self.state(s.run_id) == "failed" and s.run_id not in self.attempted for s in member.waiting)

    def _wanted(self) -> list[RunSpec]:
        """Return runs to start, shuffled by a fixed seed.

        So methods of an unfinished table have similar numbers of runs, and changes of the machine's speed over the
        hours spread over all methods.
        """
        running = set(self.executor.running) if self.executor else set()
        found = {}
        for spec in (spec for member in self.members if member.open for spec in member.waiting):
            state = self.state(spec.run_id)
            again = state == "failed" and self.retry and spec.run_id not in self.attempted
            if spec.run_id not in running and (state in ("todo", "stale") or again):
                found[spec.run_id] = spec
        order = sorted(found)
        random.Random(0).shuffle(order)
        return [found[run_id] for run_id in order]

    def _elsewhere(self) -> list[str]:
        waiting = {spec.run_id for member in self.members if member.open for spec in member.waiting}
        return sorted(run_id for run_id in waiting if self.state(run_id) == "running")

    def _start(self) -> None:
        for spec in self._wanted():
            if self.executor is None or not self.executor.free:
                return
            self.attempted.add(spec.run_id)
            folder = RunFolder(self.root, spec.run_id)
            if folder.state() == "stale":
                # The new process has not watched the lock of another machine and would wait for it.
                folder.clear_lock()
            self.executor.start(spec)

    def _take_in(self) -> None:
        for spec, code in self.executor.ended() if self.executor else ():
            folder = RunFolder(self.root, spec.run_id)
            if code in (ExitCode.NOT_OURS, ExitCode.STOPPED) or folder.state() in ("failed", "done"):
                continue
            self.losses[spec.run_id] = self.losses.get(spec.run_id, 0) + 1
            log = self.root / "logs" / f"{spec.run_id}.log"
            if code == ExitCode.FAILED:
                folder.fail({"type": "Error", "message": f"The run failed silently; see {log}.", "traceback": ""})
            elif self.losses[spec.run_id] > RETRIES:
                folder.fail(_killed(-code) if code < 0 else _without_result(code, log))


def _plan_of(spec: RunSpec) -> Plan:
    from mtlbench import registry
    from mtlbench.runs.plan import one_run

    cls: Any = registry.find(spec.method["path"])
    with foreign_code(f"The plan of {spec.label}"):
        plan = cls.plan(spec) if hasattr(cls, "plan") else one_run(spec)
    if not isinstance(plan, Generator):
        raise MethodError(f"A plan must be a generator that yields lists of runs. {spec.label}.plan returned {plan!r}.")
    return plan


def _checked_runs(member: Member, runs: Any) -> list[RunSpec]:
    label, rule = member.spec.label, "A plan must yield a non-empty list of runs of its own suite, each run once. "
    if not isinstance(runs, list) or not all(isinstance(run, RunSpec) for run in runs):
        raise MethodError(f"{rule}{label} yielded {runs!r}.")
    if not runs:
        raise MethodError(f"{rule}{label} yielded an empty list. Return which run serves which task instead.")
    known = {spec.run_id for spec in member.seen}
    for run in runs:
        if run.suite != member.spec.suite:
            raise MethodError(f"{rule}{label} yielded {run.run_id} of the suite {run.suite}. Derive it from its spec.")
        if run.run_id in known:
            raise MethodError(f"{rule}{label} yielded {run.run_id} twice. Keep the result of the first time.")
        known.add(run.run_id)
    return runs


def _checked_ending(member: Member, value: Any) -> Ending:
    known = {spec.run_id for spec in member.seen}
    ending, tasks = Ending.of(value), set(member.spec.tasks)
    serving = ending.serving
    if not isinstance(serving, dict) or set(serving) != tasks or not set(serving.values()) <= known:
        raise MethodError(
            f"A plan must return which of its runs serves each task {sorted(tasks)}. "
            f"{member.spec.label} returned {serving!r}."
        )
    return ending


def _killed(number: int) -> dict[str, str]:
    name = signal.Signals(number).name
    return {
        "type": "Killed",
        "traceback": "",
        "message": f"The process was ended by {name} {RETRIES + 1} times (SIGKILL often means: out of memory).",
    }


def _without_result(code: int, log: Path) -> dict[str, str]:
    return {
        "type": "NoResult",
        "traceback": "",
        "message": f"The process ended {RETRIES + 1} times with exit code {code}, and left neither a result nor an "
        f"error. Something ends it from within, such as os._exit or sys.exit; see {log}.",
    }
