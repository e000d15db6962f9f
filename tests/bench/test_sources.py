"""Runs that read others: found by id, pinned by hash, resumed bit for bit, and loaded without them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from mtlbench.errors import MethodError, StoreError
from mtlbench.methods.plans.kd_mtl import KDMTL
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.testing import difference, toy_spec, trained
from mtlbench.testing.toy import sourced
from mtlbench.training import checkpoint, warm_start
from mtlbench.training.load import load_run
from mtlbench.training.loggers import read_rows
from mtlbench.training.run import build_with_network
from mtlbench.training.worker import Seat, work
from tests.support.command_line import SMALL, mtlbench, outcome, run_to_end, runs_of, specs, step
from tests.training.test_kill import kill_when

TASKS = ["shape", "far"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Gives the folder of a student's finished run and its sources, and the run's specification."""
    folder = tmp_path_factory.mktemp("whole")
    spec = sourced(toy_spec("kd_mtl", steps=6, tasks=TASKS), str(folder))
    assert work(str(folder), spec.to_json(), Seat()) == 0
    return folder, spec


@pytest.fixture
def store(whole, tmp_path):
    """Gives the folder of the sources alone, free to be damaged, and the student's specification."""
    folder, spec = whole
    for source in spec.sources.values():
        shutil.copytree(folder / source["run"], tmp_path / source["run"])
    return tmp_path, spec


def refusal(folder, spec, error=StoreError):
    with pytest.raises(error) as found:
        trained(spec, str(folder))
    return str(found.value)


# ---- identity -------------------------------------------------------------------------------------------------------


def test_sources_are_part_of_the_identity_only_where_they_are_set(whole):
    _, spec = whole
    bare = replace(spec, sources=None)
    assert "sources" not in bare.identity() and bare.hash == toy_spec("kd_mtl", steps=6, tasks=TASKS).hash
    assert set(spec.identity()["sources"]) == set(TASKS) and spec.run_id != bare.run_id
    assert RunSpec.from_json(spec.to_json()).hash == spec.hash
    other = replace(spec, sources={**spec.sources, "far": spec.sources["shape"]})
    assert other.hash != spec.hash


def test_another_source_makes_another_run():
    spec = toy_spec("kd_mtl", tasks=TASKS)
    students = [
        spec.with_sources(far=toy_spec("uniform", tasks=["far"], **changes))
        for changes in ({}, {"steps": 3}, {"seed": 1}, {"accumulate": 2})
    ]
    assert len({student.hash for student in students}) == 4


# ---- what a method gets ---------------------------------------------------------------------------------------------


def test_a_method_gets_the_trained_networks_frozen_and_still(whole):
    folder, spec = whole
    found = warm_start.networks(spec.sources, folder, lambda other: build_with_network(other)[0])
    assert set(found) == set(TASKS)
    for role, network in found.items():
        weights = checkpoint.load(folder / spec.sources[role]["run"] / "final.ckpt")["state_dict"]
        own = {f"network.{name}": value for name, value in network.state_dict().items()}
        assert own.keys() == {name for name in weights if name.startswith("network.")}
        assert all(torch.equal(value, weights[name]) for name, value in own.items())
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        fresh = dict(
            build_with_network(RunFolder(folder, spec.sources[role]["run"]).spec())[0].network.named_parameters()
        )
        assert any(not torch.equal(p, fresh[name]) for name, p in network.named_parameters())


def test_a_method_that_takes_none_refuses_them(store):
    folder, spec = store
    taker = replace(toy_spec("pcgrad", tasks=TASKS), sources=spec.sources)
    message = refusal(folder, taker, MethodError)
    assert "methods that take them" in message and "['far', 'shape']" in message


# ---- pinned by hash -------------------------------------------------------------------------------------------------


def test_a_source_that_lacks_is_named(store):
    folder, spec = store
    lost = spec.sources["far"]["run"]
    shutil.rmtree(folder / lost)
    message = refusal(folder, spec)
    assert lost in message and "todo" in message and "Run the bench again" in message


def test_a_source_that_is_not_finished_is_no_source(store):
    folder, spec = store
    (folder / spec.sources["far"]["run"] / "result.json").unlink()
    assert spec.sources["far"]["run"] in refusal(folder, spec)


def test_another_run_under_the_name_of_a_source_is_refused(store):
    folder, spec = store
    shutil.rmtree(folder / spec.sources["far"]["run"])
    shutil.copytree(folder / spec.sources["shape"]["run"], folder / spec.sources["far"]["run"])
    message = refusal(folder, spec)
    # The result there names another run, so its folder counts as damaged.
    assert f"{spec.sources['far']['run']}: failed" in message and "it is of another run" in message


def test_the_reason_for_a_failed_or_damaged_source_is_given(store):
    folder, spec = store
    run = RunFolder(folder, spec.sources["far"]["run"])
    result, record = (run.path / "result.json").read_text(), (run.path / "spec.json").read_text()
    (run.path / "result.json").write_text(result.replace('"steps": 1', '"steps": 2'))
    message = refusal(folder, spec)
    assert "does not match its digest" in message and message.count("--retry") == 1
    (run.path / "result.json").unlink()
    run.fail({"type": "DivergedError", "message": "The loss of far became NaN.\nmore", "time": 0.0})
    message = refusal(folder, spec)
    assert f"{run.run_id}: failed: The loss of far became NaN. Run the bench again with --retry" in message
    (run.path / "result.json").write_text(result)
    (run.path / "spec.json").write_text(record.replace('"seed": 0', '"seed": 1'))
    assert f"{run.run_id}: its spec.json is absent or damaged. Run the bench again, which" in refusal(folder, spec)


def test_damaged_weights_of_a_source_are_refused(store):
    folder, spec = store
    path = folder / spec.sources["shape"]["run"] / "final.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    message = refusal(folder, spec)
    assert "sha256" in message and str(path) in message


def test_a_failed_run_says_so_in_its_folder(store):
    folder, spec = store
    shutil.rmtree(folder / spec.sources["far"]["run"])
    assert work(str(folder), spec.to_json(), Seat()) == 1
    error = RunFolder(folder, spec.run_id).error()
    assert error["kind"] == "bad input" and spec.sources["far"]["run"] in error["message"]


# ---- the run is what it is, however it is run -----------------------------------------------------------------------


def test_two_ranks_are_one_process(whole, store, pool):
    folder, spec = store
    two = pool.call(trained, spec, str(folder), world=2)[0]
    one = checkpoint.load(whole[0] / spec.run_id / "final.ckpt")["state_dict"]
    assert difference(one, two) <= 1e-9
    rows = [read_rows(root / spec.run_id / "metrics.jsonl") for root in (whole[0], folder)]
    seen = [[row[f"distillation/{task}"] for row in found if "lr" in row for task in TASKS] for found in rows]
    assert len(seen[0]) == 12 and seen[1] == pytest.approx(seen[0], rel=1e-9)


def test_sources_are_not_in_checkpoints_and_not_needed_to_predict(whole, tmp_path):
    folder, spec = whole
    state = checkpoint.load(folder / spec.run_id / "final.ckpt")["state_dict"]
    bare = build_with_network(replace(spec, sources=None))[0]
    assert state.keys() == bare.state_dict().keys()
    shutil.copytree(folder / spec.run_id, tmp_path / spec.run_id)  # without its sources
    image = torch.zeros(2, 3, 16, 24, dtype=torch.uint8)
    kept, moved = (load_run(root / spec.run_id, allow=["tests"]).method(image) for root in (folder, tmp_path))
    assert set(moved) == set(TASKS) and all(torch.equal(kept[task], moved[task]) for task in TASKS)


SETTINGS = (*SMALL, "trainer.steps=40", "trainer.checkpoint_every=5", "trainer.evaluate_every=10")


def test_a_killed_student_ends_as_one_that_was_not(tmp_path):
    (spec,) = specs(*SETTINGS, "methods=[kd_mtl]", "seeds=[0]")
    plan = KDMTL.plan(spec.with_tasks("left", "ink"))
    teachers = [run_to_end(tmp_path / "one", run) for run in next(plan)]
    (student,) = plan.send([run.outcome() for run in teachers])
    untouched = run_to_end(tmp_path / "one", student)
    for run in teachers:
        shutil.copytree(run.path, tmp_path / "two" / run.run_id)
    folder = RunFolder(tmp_path / "two", student.run_id)
    for at in (3, 12):
        kill_when(tmp_path / "two", student, lambda at=at: step(folder) > at)
        assert folder.state() == "stale"
    assert outcome(run_to_end(tmp_path / "two", student)) == outcome(untouched)


def test_the_bench_trains_a_teacher_once_and_repeats_nothing(tmp_path):
    words = ("bench", "digits", *SMALL, "trainer.steps=2", "seeds=[0]", "--methods")
    first = mtlbench(tmp_path, *words, "kd_mtl")
    assert first.code == 0, first.text
    root = tmp_path / "results" / "digits"
    runs = {path.parent.name: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    assert sorted(run.partition("-")[0] for run in runs) == ["kd_mtl", *5 * ["single_task"]]
    second = mtlbench(tmp_path, *words, "single_task kd_mtl uniform")
    assert second.code == 0, second.text
    after = {path.parent.name: path.stat().st_mtime_ns for path in root.glob("*/result.json")}
    assert runs.items() <= after.items() and len(after) == 7
    student = runs_of(tmp_path)["kd_mtl"].spec()
    assert {source["run"] for source in student.sources.values()} < set(runs)
