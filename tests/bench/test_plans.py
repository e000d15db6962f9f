"""A plan says which runs a method needs: what it may yield and return, and what becomes of one that breaks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mtlbench import registry
from mtlbench.bench.executors.local import LocalExecutor
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import MethodError
from mtlbench.runs.plan import Case, Ending, Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json, write_json
from mtlbench.study.resolve import Study
from tests.support.command_line import SMALL, mtlbench

SPEC = RunSpec(
    suite="mine",
    label="planned",
    seed=3,
    method={"name": "uniform", "path": "uniform", "arguments": {}},
    tasks={"a": {}, "b": {}},
    data={},
    model={},
    optimiser={},
    trainer={"steps": 1},
)


class Instant:
    """An executor whose runs are done at once, with the names of their tasks as summary; some fail."""

    def __init__(self, root: Path, failing: tuple[str, ...] = ()):
        self.root, self.failing, self.free = root, failing, True
        self.running: dict[str, RunSpec] = {}
        self.started: list[str] = []

    def start(self, spec: RunSpec) -> None:
        self.started.append("+".join(spec.tasks))
        assert RunFolder(self.root, spec.run_id).claim(spec)
        self.running[spec.run_id] = spec

    def ended(self) -> list[tuple[RunSpec, int]]:
        ended, self.running = list(self.running.values()), {}
        return [(spec, self._end(spec)) for spec in ended]

    def _end(self, spec: RunSpec) -> int:
        folder = RunFolder(self.root, spec.run_id)
        if "+".join(spec.tasks) in self.failing:
            folder.fail({"type": "Error", "message": "broken on purpose"})
            return 1
        write_json(folder.path / "summary.json", {"on": list(spec.tasks)})
        folder.finish({"hash": spec.hash, "seed": spec.seed})
        return 0

    def wait(self, seconds: float) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""


def bench(root: Path, plan: Callable[[RunSpec], Plan], **options: Any) -> tuple[Bench, Instant]:
    """Returns a bench of one line whose plan is the given one, and its executor."""
    root.mkdir(exist_ok=True)
    executor = Instant(root, **options)
    record = {"key": "k", "rows": [{"label": "planned", "seed": 3}]}
    study = Study(record, [Case(SPEC, plan=lambda method_plan: plan(SPEC))])
    return Bench(root, study, cast(LocalExecutor, executor)), executor


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this file are never trained, so that nothing is there to be checked."""
    monkeypatch.setattr("mtlbench.bench.scheduler.check_run", lambda spec: None)


def two_stages(spec: RunSpec) -> Plan:
    (first,) = yield [spec.with_tasks("a")]
    (second,) = yield [spec.with_tasks("b")]
    serving = {"a": spec.with_tasks("a").run_id, "b": spec.with_tasks("b").run_id}
    return Ending(serving, {"seen": [first["summary"]["on"], second["summary"]["on"]]})


def row_of(root: Path) -> dict[str, Any]:
    return (read_json(root / "study.json") or {})["rows"][0]


def test_stages_results_and_the_record_of_the_end(tmp_path: Path) -> None:
    whole, executor = bench(tmp_path, two_stages)
    whole.run()
    row = row_of(tmp_path)
    a, b = SPEC.with_tasks("a").run_id, SPEC.with_tasks("b").run_id
    assert executor.started == ["a", "b"]
    assert row["stages"] == [[a], [b]] and row["runs"] == [a, b] and row["serving"] == {"a": a, "b": b}
    assert row["record"] == {"seen": [["a"], ["b"]]} and "error" not in row


def test_started_again_repeats_no_finished_run(tmp_path: Path) -> None:
    first, executor = bench(tmp_path, two_stages, failing=("b",))
    first.run()
    assert executor.started == ["a", "b"] and row_of(tmp_path)["serving"] == {}
    (RunFolder(tmp_path, SPEC.with_tasks("b").run_id).path / "error.json").unlink()
    second, executor = bench(tmp_path, two_stages)
    second.run()
    assert executor.started == ["b"] and set(row_of(tmp_path)["serving"]) == {"a", "b"}


def test_failed_stage_stops_what_depends_on_it(tmp_path: Path) -> None:
    whole, executor = bench(tmp_path, two_stages, failing=("a",))
    states = whole.run()
    assert executor.started == ["a"] and list(states.values()) == ["failed"]
    assert row_of(tmp_path)["stages"] == [[SPEC.with_tasks("a").run_id]]


def yields(*stages: Any) -> Callable[[RunSpec], Plan]:
    def plan(spec: RunSpec) -> Generator[Any, Any, Any]:
        for stage in stages:  # noqa: UP028 - a tuple cannot be sent results.
            yield stage
        return dict.fromkeys(spec.tasks, SPEC.run_id)

    return plan


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ([], "yielded an empty list"),
        (SPEC, "A plan must yield a non-empty list"),
        ([SPEC, replace(SPEC, label="again")], "twice. Keep the result"),
        ([replace(SPEC, suite="other")], "of the suite other. Derive it"),
    ],
)
def test_refused_before_anything_is_trained(tmp_path: Path, stage: Any, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        bench(tmp_path, yields(stage))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (yields([SPEC], [SPEC]), "twice. Keep the result"),
        (yields([SPEC.with_tasks("a")]), "must return which of its runs serves each task"),
        (yields([SPEC], []), "yielded an empty list"),
        (lambda spec: _breaks(spec), "KeyError in the plan: 'nowhere'"),
    ],
)
def test_plan_that_breaks_later_fails_alone_and_loses_nothing(tmp_path: Path, plan: Any, words: str) -> None:
    whole, executor = bench(tmp_path, plan)
    assert set(whole.run().values()) == {"done"} and len(executor.started) == 1
    assert words in row_of(tmp_path)["error"] and row_of(tmp_path)["serving"] == {}


def _breaks(spec: RunSpec) -> Plan:
    (result,) = yield [spec]
    return {"a": result["nowhere"]}


BROKEN = """\
from mtlbench.method import MTLMethod

class Nonsense(MTLMethod):
    @classmethod
    def plan(cls, spec):
        yield [spec]
        return {"left": "elsewhere"}
"""


def test_broken_plan_is_told_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "own.py").write_text(BROKEN)
    words = ("bench", "digits", *SMALL, "trainer.steps=1", "--methods", "own:Nonsense uniform")
    for _ in range(2):  # The second time everything is done already.
        answer = mtlbench(tmp_path, *words)
        assert answer.code == 1, answer.text
        assert "FAILED plan of Nonsense, seed 0: A plan must return which of its runs serves each task" in answer.text
        assert "uniform" in answer.text


def test_the_line_of_the_suite_is_checked_before_its_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a plan begins with other runs, wrong arguments of the method itself would show only after them."""
    monkeypatch.undo()
    words = ("bench", "digits", *SMALL, "trainer.steps=1", "methods=[{name: kd_mtl, weight: -1.0}]")
    answer = mtlbench(tmp_path, *words)
    assert answer.code == 2 and "weight" in answer.text and "Traceback" not in answer.text, answer.text
    assert not list(tmp_path.glob("results/digits/single_task-*"))


def test_who_only_looks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    words = ("bench", "digits", *SMALL, "trainer.steps=1")
    assert mtlbench(tmp_path, *words, "--methods", "uniform").code == 0
    before = (tmp_path / "results/digits/study.json").read_text()
    looked = mtlbench(tmp_path, *words, "--methods", "uniform single_task", "--dry")
    assert looked.code == 0 and "5 to do" in looked.text, looked.text
    assert (tmp_path / "results/digits/study.json").read_text() == before


def test_record_of_a_method_is_that_of_the_suite() -> None:
    record = registry.record("single_task")
    assert record == {"name": "single_task", "path": "single_task", "version": 1, "arguments": {}}
    assert SPEC.with_method(record).with_tasks("a").hash == replace(SPEC.with_tasks("a"), method=record).hash
    with pytest.raises(MethodError, match="Did you mean"):
        registry.record("single_tusk")
    with pytest.raises(MethodError, match="Unknown hyper-parameter"):
        registry.record("single_task", depth=3)


def test_sources_are_part_of_the_identity_only_where_set() -> None:
    teacher = SPEC.with_tasks("a")
    assert "sources" not in SPEC.identity()
    taught = SPEC.with_sources(a=teacher)
    assert taught.identity()["sources"] == {"a": {"run": teacher.run_id, "hash": teacher.hash}}
    assert taught.hash != SPEC.hash and RunSpec.from_json(taught.to_json()).hash == taught.hash
