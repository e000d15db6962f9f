"""The bench: drives the plans of a study to their end through an executor. Idempotent: it runs what is missing."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.errors import MethodError
from mtlbench.examine import check_run
from mtlbench.executors.local import LocalExecutor
from mtlbench.plan import Plan, RunSpec
from mtlbench.store import RunFolder
from mtlbench.study import Study, remember

RETRIES = 2
"""How often a run whose process was killed is taken up again from its checkpoint within one bench."""


@dataclass
class Member:
    """One line of the study: its plan, and the runs that the plan waits for."""

    spec: RunSpec
    plan: Plan
    waiting: list[RunSpec] = field(default_factory=list)
    seen: list[RunSpec] = field(default_factory=list)
    serving: dict[str, str] | None = None
    failed: bool = False

    @property
    def open(self) -> bool:
        """Whether the plan has neither ended nor failed."""
        return self.serving is None and not self.failed


class Bench:
    """Runs a study.

    Args:
        root: ``results/<suite>``.
        study: What to run.
        executor: Where to run it; None only looks (``DRY=1``).
        retry: Run failed runs again.
        watch: Called about once a second with this bench, to show progress.
    """

    def __init__(
        self, root: Path, study: Study, executor: LocalExecutor | None, *, retry: bool = False,
        watch: Callable[[Bench], None] = lambda bench: None,
    ):  # fmt: skip
        self.root, self.study, self.executor, self.retry, self.watch = root, study, executor, retry, watch
        self.members = [Member(case.spec, case.begin(_plan_of)) for case in study.cases]
        self.kills: dict[str, int] = {}
        self.attempted: set[str] = set()
        self._states: dict[str, str] = {}
        self._checked: set[tuple[str, ...]] = set()
        self.advance()

    def specs(self) -> dict[str, RunSpec]:
        """Returns every run known so far by id; a run that several plans share stands once."""
        return {spec.run_id: spec for member in self.members for spec in member.seen}

    def state(self, run_id: str) -> str:
        """Returns a run's state on disk; done is final and not read again."""
        if self._states.get(run_id) != "done":
            self._states[run_id] = RunFolder(self.root, run_id).state()
        return self._states[run_id]

    def states(self) -> dict[str, str]:
        """Returns the state of every known run."""
        return {run_id: self.state(run_id) for run_id in self.specs()}

    def run(self) -> dict[str, str]:
        """Runs everything that is missing; failures are passed by. Returns the final states."""
        if self.executor is None:
            return self.states()
        try:
            while True:
                self._take_in()
                self.advance()
                self._start()
                self.watch(self)
                if not self.executor.running and not self._wanted() and not self._elsewhere():
                    return self.states()
                time.sleep(0.05 if self._wanted() and self.executor.free else 0.3)
        finally:
            self.executor.stop()

    def advance(self) -> None:
        """Lets every plan take the results it waits for, as far as they are there."""
        moved = True
        while moved:
            moved = any([self._advance(member) for member in self.members if member.open])
        for row, member in zip(self.study.record["rows"], self.members, strict=True):
            row["runs"] = [spec.run_id for spec in member.seen]
            row["serving"] = member.serving or {}
        remember(self.root, self.study.record)

    def _advance(self, member: Member) -> bool:
        states = [self.state(spec.run_id) for spec in member.waiting]
        if "failed" in states and not (self.retry and self._retriable(member)):
            member.failed = all(state in ("done", "failed") for state in states)
            return False
        if any(state != "done" for state in states):
            return False
        results = [RunFolder(self.root, spec.run_id).result() or {} for spec in member.waiting]
        try:
            member.waiting = next(member.plan) if not member.seen else member.plan.send(results)
        except StopIteration as end:
            member.serving = _checked_serving(member, end.value)
            return True
        if not member.waiting:
            raise MethodError(f"A plan must yield at least one run. {member.spec.label} yielded an empty list.")
        for spec in member.waiting:
            self._check(spec)
        member.seen += [spec for spec in member.waiting if spec.run_id not in {s.run_id for s in member.seen}]
        return True

    def _check(self, spec: RunSpec) -> None:
        """Refuses a run that cannot be, once for all seeds."""
        kind = spec.label, *spec.tasks
        if kind not in self._checked and self.state(spec.run_id) == "todo":
            self._checked.add(kind)
            check_run(spec)

    def _retriable(self, member: Member) -> bool:
        return any(self.state(s.run_id) == "failed" and s.run_id not in self.attempted for s in member.waiting)

    def _wanted(self) -> list[RunSpec]:
        """Returns runs to start, shuffled by a fixed seed: partial tables compare, and timings mix with the hour."""
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

    def _elsewhere(self) -> bool:
        waiting = [spec.run_id for member in self.members if member.open for spec in member.waiting]
        return any(self.state(run_id) == "running" for run_id in waiting)

    def _start(self) -> None:
        for spec in self._wanted():
            if self.executor is None or not self.executor.free:
                return
            self.attempted.add(spec.run_id)
            self.executor.start(spec)

    def _take_in(self) -> None:
        for spec, code in self.executor.ended() if self.executor else ():
            folder = RunFolder(self.root, spec.run_id)
            if code < 0:
                self.kills[spec.run_id] = self.kills.get(spec.run_id, 0) + 1
                if self.kills[spec.run_id] > RETRIES:
                    folder.fail(_killed(-code))
            elif code == 1 and folder.state() not in ("failed", "done"):
                log = self.root / "logs" / f"{spec.run_id}.log"
                folder.fail({"type": "Error", "message": f"The run ended without a word; see {log}.", "traceback": ""})


def _plan_of(spec: RunSpec) -> Plan:
    from mtlbench import registry
    from mtlbench.plan import one_run

    cls: Any = registry.find(spec.method["path"])
    return cls.plan(spec) if hasattr(cls, "plan") else one_run(spec)


def _checked_serving(member: Member, serving: Any) -> dict[str, str]:
    known = {spec.run_id for spec in member.seen}
    tasks = set(member.spec.tasks)
    if not isinstance(serving, dict) or set(serving) != tasks or not set(serving.values()) <= known:
        raise MethodError(
            f"A plan must return which of its runs serves each task {sorted(tasks)}. "
            f"{member.spec.label} returned {serving!r}."
        )
    return serving


def _killed(number: int) -> dict[str, str]:
    name = signal.Signals(number).name
    return {
        "type": "Killed", "traceback": "",
        "message": f"The process was ended by {name} {RETRIES + 1} times (SIGKILL often means: out of memory).",
    }  # fmt: skip
