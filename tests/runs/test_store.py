"""The store: a file is old or new but never torn, a run has one owner, and identity is what decides a result."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.errors import StoreError
from mtlbench.runs import liveness
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json, sweep, temporary, write_json
from mtlbench.study import resolve as studies
from mtlbench.training import checkpoint
from tests.support.command_line import specs, started, wait_for

SPEC = RunSpec(
    suite="s", label="a", seed=0, method={"name": "m"}, tasks={"t": {}}, data={}, model={}, optimiser={}, trainer={}
)


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, done = tmp_path / "file.json", threading.Event()
    write_json(path, {"value": 0, "filling": ""})

    def write() -> None:
        for value in range(1, 100):
            write_json(path, {"value": value, "filling": str(value) * 20_000})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[int] = set()
    while not done.is_set():
        found = read_json(path)
        assert found is not None and found["filling"] == str(found["value"]) * (20_000 if found["value"] else 0)
        seen.add(found["value"])
    writer.join()
    assert len(seen) > 2 and [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "nonsense", '{"a": 1', "[" * 100_000, "1" * 5000])
def test_torn_files_count_as_absent(content: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content)
    assert read_json(tmp_path / "file.json") is None


def test_states(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    assert run.state() == "todo"
    assert run.claim(SPEC) and run.state() == "running"
    assert not run.claim(SPEC), "a running run has one owner"
    run.release()
    assert run.state() == "todo"
    checkpoint.save({}, checkpoint.path_of(run.path, 5))
    assert run.state() == "stale"
    run.fail({"type": "E", "message": "m", "traceback": ""})
    assert run.state() == "failed"
    assert run.claim(SPEC) and run.error() is None
    run.finish({"hash": SPEC.hash})
    assert run.state() == "done" and not run.claim(SPEC)
    assert run.spec() == SPEC


def test_result_of_another_specification_is_no_result(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    run.finish({"hash": "another"})
    assert run.result() is None and run.state() == "failed"
    assert "it is of another run, whose hash begins with another" in (run.error() or {})["message"]


def test_torn_specification_is_written_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    run.release()
    (run.path / "spec.json").write_text("{")
    assert run.claim(SPEC) and run.spec() == SPEC


def lock_of(pid: int, **changes: Any) -> dict[str, Any]:
    run = {"host": liveness.machine(), "pid": pid, "born": "1", "beat": 1}
    return {**run, **changes}


def test_lock_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    (tmp_path / "spec").write_bytes(pickle.dumps(SPEC))
    code = "import pickle, sys; from pathlib import Path; from mtlbench.runs.store import RunFolder\n"
    code += "root = Path(sys.argv[1]); spec = pickle.loads((root / 'spec').read_bytes())\n"
    code += "run = RunFolder(root, spec.run_id); run.claim(spec); print('claimed', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    assert run.state() == "running" and not run.claim(SPEC)
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: run.state() == "stale", seconds=5)  # A zombie is dead, too: nobody has waited for it yet.
    process.communicate()
    assert run.claim(SPEC) and run.state() == "running"


def test_number_of_a_dead_process_that_another_one_has_now(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    write_json(run.path / "lock.json", lock_of(os.getpid(), born="another time"))
    assert run.state() == "stale"


class Clock:
    """The observer's own clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    chosen = Clock()
    monkeypatch.setattr(liveness, "time", chosen)
    return chosen


def foreign(run: RunFolder, beat: int, **more: Any) -> None:
    write_json(run.path / "lock.json", lock_of(7, host="elsewhere", beat=beat, **more))


def test_lock_of_another_machine_lives_while_it_changes(tmp_path: Path, clock: Clock) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    for beat in range(4):  # Far longer than a lock is trusted, but it changes.
        foreign(run, beat)
        assert run.state() == "running" and run.undecided() == (beat == 0)
        clock.now += liveness.FRESH_S - 1
    assert run.state() == "running" and not run.claim(SPEC)
    clock.now += 2
    assert run.state() == "stale" and not run.undecided()


@pytest.mark.parametrize("stamp", [-1e9, 0.0, 86400.0, 1e12])
def test_the_clock_of_another_machine_is_never_believed(stamp: float, tmp_path: Path, clock: Clock) -> None:
    """A lock dated tomorrow blocks no longer than any other, and one dated yesterday is not dead at once."""
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    foreign(run, 1, time=time.time() + stamp)
    assert run.state() == "running" and run.undecided()
    clock.now += liveness.FRESH_S + 1
    assert run.state() == "stale"


def test_a_new_process_may_claim_what_was_watched_in_vain(tmp_path: Path, clock: Clock) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    foreign(run, 1)
    run.clear_lock()
    assert (run.path / "lock.json").exists(), "the owner may still work"
    run.state()
    clock.now += liveness.FRESH_S + 1
    run.clear_lock()
    assert not (run.path / "lock.json").exists()


def test_owner_notices_that_another_took_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    assert not run.lost()
    before = read_json(run.path / "lock.json") or {}
    run.beat(step=3)
    after = read_json(run.path / "lock.json") or {}
    assert after["beat"] == before["beat"] + 1 and after["step"] == 3 and "time" not in after
    foreign(run, 1)
    assert run.lost()


@pytest.mark.parametrize("pid", ["seven", None, [1], -1, 1.5, 10**30])
def test_lock_with_a_bad_number_belongs_to_nobody(pid: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    write_json(run.path / "lock.json", {**lock_of(1), "pid": pid})
    assert run.state() == "stale" and run.claim(SPEC)


def test_files_of_killed_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    own, foreign_new = temporary(tmp_path / "a.json"), tmp_path / ".b.json.0123abcd-1"
    dead = own.with_name(own.name.replace(f"-{os.getpid()}", "-4194999"))
    foreign_old, kept = tmp_path / ".c.ckpt.0123abcd-1.sha256", tmp_path / ".reported"
    for path in (own, foreign_new, dead, foreign_old, kept):
        path.touch()
    os.utime(foreign_old, (0, 0))
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, foreign_new, kept])


def _race(folder: str, start: Any, wins: Any) -> None:
    specs_ = [replace(SPEC, seed=seed) for seed in range(60)]
    start.wait(60)
    wins.put([spec.seed for spec in specs_ if RunFolder(Path(folder), spec.run_id).claim(spec)])
    start.wait(60)  # Keeps this process, and with it its locks, alive until both are through.


def test_two_processes_never_both_claim_a_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    start, wins = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), start, wins)) for _ in range(2)]
    with started(*racers):
        claimed = [wins.get(timeout=60), wins.get(timeout=60)]
        for racer in racers:
            racer.join(60)
        assert [racer.exitcode for racer in racers] == [0, 0]
    assert sorted(sum(claimed, [])) == list(range(60))


def test_half_written_files_of_a_killed_process_are_removed_by_the_next_owner(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.claim(SPEC)
    run.release()
    (run.path / ".step-00000001.ckpt.123").write_bytes(b"half")
    run.claim(SPEC)
    assert sorted(path.name for path in run.path.iterdir()) == ["lock.json", "spec.json"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be writable"):
        RunFolder(tmp_path / "file" / "below", SPEC.run_id).claim(SPEC)
    with pytest.raises(StoreError, match="must be writable"):
        write_json(tmp_path / "absent" / "file.json", {})


# ---- identity --------------------------------------------------------------------------------------------------------


def id_of(*overrides: str, local: studies.Local | None = None, methods: str = "[famo]") -> str:
    suite = suites.load("digits", (f"methods={methods}", "floor=false", *overrides))
    (spec,) = studies.resolve(suite, local or studies.Local(), []).members
    return spec.run_id


@pytest.mark.parametrize(
    "override",
    [
        "data.root=tests/support", "trainer.workers=3", "trainer.log_every=1", "trainer.checkpoint_every=9",
        "trainer.diagnose_every=0", "trainer.examples=1", "title=another", "methods=[{name: famo, label: mine}]",
        "methods=[{name: famo, lr: 0.025}]",
    ],
)  # fmt: skip
def test_run_keeps_its_id(override: str) -> None:
    assert id_of(override) == id_of()


def test_devices_and_data_folder_do_not_change_the_id() -> None:
    assert id_of(local=studies.Local(data="tests/support", devices=2)) == id_of()


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[1]", "trainer.steps=151", "trainer.batch_size=16", "trainer.accumulate=2", "trainer.precision=64-true",
        "trainer.clip=1", "trainer.evaluate_every=25", "optimiser.lr=0.1", "model.decoder_channels=8", "version=1",
        "tasks.sum.scale=2", "data.options.train=100", "methods=[{name: famo, lr: 0.5}]",
        "methods=[{name: task_moe, balancer: famo}]",
    ],
)  # fmt: skip
def test_run_gets_another_id(override: str) -> None:
    assert id_of(override) != id_of()


def test_versions_and_the_data_itself_change_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench.data_modules.digits import Digits
    from mtlbench.methods.losses.famo import FAMO

    ids = [id_of()]
    with monkeypatch.context() as patch:
        patch.setattr(FAMO, "VERSION", 99)
        ids.append(id_of())
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "VERSION", 99)
        ids.append(id_of())
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "fingerprint", lambda self: "other photographs")
        ids.append(id_of())
    assert len(set(ids)) == 4


def test_pretrained_weights_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    ids = {}
    for name, content in {"one": b"weights", "same": b"weights", "other": b"others"}.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
        ids[name] = id_of(f"model.weights={tmp_path / name}.pth")
    assert ids["one"] == ids["same"] != ids["other"] and id_of() not in ids.values()


def test_specification_survives_its_file() -> None:
    (spec,) = specs("methods=[famo]")
    again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.run_id == spec.run_id and again.to_json() == spec.to_json()


def test_a_lock_that_is_gone_may_be_cleared(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    run.path.mkdir()
    (run.path / "step-00000001.ckpt").touch()
    run.clear_lock()
    assert run.state() == "stale", "it goes on from its checkpoint"


def test_rules_on_labels_take_the_place_of_earlier_ones() -> None:
    cut = replace(SPEC, data={"module": "m"}).with_labels({"left": {"count": 1}})
    assert cut.data == {"module": "m", "labels": {"left": {"count": 1}}}
    assert cut.with_labels({"left": {"count": 2}}).data == {"module": "m", "labels": {"left": {"count": 2}}}
    assert cut.with_labels({}).data == {"module": "m"}


def test_without_proc_a_process_is_asked_for_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def __init__(self, path: str) -> None:
            pass

        def exists(self) -> bool:
            return False

        def read_text(self) -> str:
            raise FileNotFoundError

    def kill(pid: int, number: int) -> None:
        assert number == 0, "a signal that only asks"
        if pid != 7:
            raise ProcessLookupError

    monkeypatch.setattr(liveness, "Path", Absent)
    monkeypatch.setattr(liveness.os, "kill", kill)
    assert liveness.born(7) == "7" and liveness.born(8) is None
