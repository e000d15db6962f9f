"""Runs on nodes that share no folder with the bench: what travels, what is lost, and what is never done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtlbench.bench.executors import node, parcels
from mtlbench.bench.executors.base import Executor
from mtlbench.bench.executors.node import Job, serve
from mtlbench.bench.executors.parcels import Parcel, sources_of
from mtlbench.bench.executors.ray_cluster import RayCluster, RayOptions, _Ticket, spread
from mtlbench.bench.executors.remote import RemoteExecutor
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import ExitCode, StoreError
from mtlbench.runs import liveness
from mtlbench.runs.plan import Case, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_bytes, write_json
from mtlbench.runs.verify import faults_of
from mtlbench.study.resolve import Study
from mtlbench.training import checkpoint

SPEC = RunSpec("mine", "uniform", 0, {"name": "uniform"}, {"a": {}}, {}, {}, {}, {"steps": 6})
STEPS = 6


class Training(Executor):
    """Stands in for the executor of a node: every look is a step with a checkpoint, as its class attributes say.

    Attributes:
        trained: Seed, node folder and step of every step of any node.
        fails: Seeds that end with an error.
    """

    trained: list[tuple[int, Path, int]] = []
    fails: tuple[int, ...] = ()

    def __init__(self, root: Path, **options: Any):
        self.root, self.options, self.spec = root, options, None

    @property
    def free(self) -> bool:
        return self.spec is None

    @property
    def running(self) -> list[str]:
        return []

    def start(self, spec: RunSpec) -> None:
        self.spec, self.run = spec, RunFolder(self.root, spec.run_id)
        assert self.run.claim(spec)
        self.step = checkpoint.step_of(checkpoint.newest(self.run.path))

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        if self.spec.seed in self.fails:
            self.run.fail({"type": "Error", "message": "on purpose"})
            yield self.spec, ExitCode.FAILED
            return
        self.step += 1
        Training.trained.append((self.spec.seed, self.root, self.step))
        checkpoint.save({"step": self.step}, checkpoint.path_of(self.run.path, self.step))
        (self.root / "logs").mkdir(exist_ok=True)
        with (self.root / "logs" / f"{self.spec.run_id}.log").open("a") as file:
            file.write(f"step {self.step}\n")
        self.run.beat(step=self.step, steps=STEPS)
        if self.step == STEPS:
            checkpoint.save({}, self.run.path / "final.ckpt")
            write_json(self.run.path / "summary.json", {"seed": self.spec.seed})
            for path in self.run.path.glob("step-*"):
                path.unlink()
            self.run.finish({"hash": self.spec.hash}, ("final.ckpt", "summary.json"))
            yield self.spec, ExitCode.DONE

    def stop(self) -> None:
        self.spec = None


class Nodes:
    """Stands in for a cluster: a look at a task lets it go on to its next parcel.

    Attributes:
        lose: Says of a run's seed, the number of times it was sent and the parcels that have arrived since whether its
            node is lost now.
        sent: Seed, names of files and sources of every submitted task.
    """

    def __init__(self, size: int = 2, lose: Callable[[int, int, int], bool] = lambda *_: False):
        self.size, self.lose, self.rung = size, lose, False
        self.sent: list[tuple[int, list[str], dict[str, list[str]]]] = []
        self.kept, self.cancelled = 0, []

    def room(self) -> int:
        return self.size

    def submit(self, job: Job, files: Any, sources: Any) -> Any:
        seed = job.record["seed"]
        self.sent.append((seed, sorted(files), {run_id: sorted(names) for run_id, names in sources.items()}))
        attempt = [other for other, *_ in self.sent].count(seed)
        return [seed, attempt, 0, serve(job, files, sources, ["0", "1"], lambda: self.rung)]

    def keep(self, files: Any) -> Any:
        self.kept += 1
        return files

    def arrived(self, ticket: Any) -> tuple[list[Parcel], int | None]:
        seed, attempt, count, parcels = ticket
        if self.lose(seed, attempt, count):
            return [], -signal.SIGKILL
        ticket[2] += 1
        return [next(parcels)], None

    def cancel(self, ticket: Any) -> None:
        self.cancelled.append(ticket[0])

    def ring(self) -> None:
        self.rung = True


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trains in place of a node, and looks without waiting."""
    monkeypatch.setattr(node, "LocalExecutor", Training)
    monkeypatch.setattr(node, "_LOOK_S", 0.0)
    monkeypatch.setattr(Training, "trained", [])
    monkeypatch.setattr("mtlbench.bench.scheduler.check_run", lambda spec: None)
    instant = SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic)
    monkeypatch.setattr("mtlbench.bench.executors.base.time", instant)
    monkeypatch.setattr(node.tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(node.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(node.sys, "path", list(node.sys.path))


def executor(root: Path, nodes: Nodes, **options: Any) -> RemoteExecutor:
    root.mkdir(exist_ok=True)
    return RemoteExecutor(root, nodes, **{"shared": False, "every": 0.0, **options})


def bench(root: Path, runner: RemoteExecutor, seeds: int) -> dict[str, str]:
    specs = [replace(SPEC, seed=seed) for seed in range(seeds)]
    cases = [Case(spec, plan=lambda method_plan, s=spec: one_run(s)) for spec in specs]
    return Bench(root, Study({"rows": [{} for _ in specs]}, cases), runner, record=False).run()


def steps(seed: int) -> list[int]:
    return [step for other, _, step in Training.trained if other == seed]


def test_results_come_back_whole_and_a_lost_node_costs_what_was_not_sent(tmp_path: Path) -> None:
    """The first node of run 1 is lost after three parcels, and its second one at once."""
    nodes = Nodes(lose=lambda seed, attempt, parcels: seed == 1 and (attempt, parcels) in ((1, 3), (2, 0)))
    root = tmp_path / "mine"
    assert set(bench(root, executor(root, nodes), seeds=3).values()) == {"done"}
    assert steps(0) == steps(2) == list(range(1, STEPS + 1)), "no step is trained twice"
    assert steps(1) == list(range(1, STEPS + 1)), "it goes on from the last parcel"
    assert [seed for seed, *_ in nodes.sent].count(1) == 3
    for seed in range(3):
        run = RunFolder(root, replace(SPEC, seed=seed).run_id)
        assert list(faults_of(run)) == []
        names = {path.name for path in run.path.iterdir()}
        assert names == {"spec.json", "summary.json", "result.json", "final.ckpt", "final.ckpt.sha256"}
        log = (root / "logs" / f"{run.run_id}.log").read_text().splitlines()
        assert log == [f"step {step}" for step in range(1, STEPS + 1)]
    assert not list((tmp_path / "scratch").glob("*/mine/*/result.json")), "nodes keep nothing that has arrived"


def test_a_checkpoint_travels_with_its_run(tmp_path: Path) -> None:
    root, nodes = tmp_path / "mine", Nodes()
    run = RunFolder(root, SPEC.run_id)
    checkpoint.save({}, checkpoint.path_of(run.path, 4))
    write_json(run.path / "error.json", {"type": "Error", "message": "an earlier one"})
    assert set(bench(root, executor(root, nodes), seeds=1).values()) == {"failed"}, "not tried again unasked"
    (run.path / "error.json").unlink()
    assert set(bench(root, executor(root, nodes), seeds=1).values()) == {"done"}
    assert steps(0) == [5, 6]
    assert nodes.sent[0][1] == ["spec.json", "step-00000004.ckpt", "step-00000004.ckpt.sha256"]


def test_a_failure_on_a_node_is_told_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "fails", (1,))
    root = tmp_path / "mine"
    states = bench(root, executor(root, Nodes()), seeds=2)
    failed = replace(SPEC, seed=1).run_id
    assert states == {SPEC.run_id: "done", failed: "failed"}
    assert (RunFolder(root, failed).error() or {})["message"] == "on purpose"


def test_the_claim_is_held_here_while_a_run_is_away(tmp_path: Path) -> None:
    root, nodes = tmp_path / "mine", Nodes()
    one, other = executor(root, nodes), executor(root, Nodes())
    one.start(SPEC)
    run = RunFolder(root, SPEC.run_id)
    assert run.state() == "running" and one.running == [SPEC.run_id]
    other.start(SPEC)
    assert list(other.ended()) == [(SPEC, ExitCode.NOT_OURS)] and other.running == []
    assert list(one.ended()) == [] and run.progress()["step"] == 1, "progress is seen here"
    write_json(run.path / "lock.json", {**liveness.owner(9), "pid": 1})
    before = sorted(path.name for path in run.path.iterdir())
    assert list(one.ended()) == [(SPEC, ExitCode.NOT_OURS)] and nodes.cancelled == [0]
    assert sorted(path.name for path in run.path.iterdir()) == before, "what another one has taken over is not touched"


def test_runs_that_are_asked_to_leave_bring_their_checkpoint(tmp_path: Path) -> None:
    root, nodes = tmp_path / "mine", Nodes()
    runner = executor(root, nodes)
    runner.start(SPEC)
    assert list(runner.ended()) == []
    runner.stop()
    run = RunFolder(root, SPEC.run_id)
    assert nodes.rung and runner.running == [] and nodes.cancelled == []
    assert run.state() == "stale" and not (run.path / "lock.json").exists()
    assert checkpoint.newest(run.path) == checkpoint.path_of(run.path, steps(0)[-1])


def test_a_run_takes_along_what_it_reads(tmp_path: Path) -> None:
    """A finished run counts only with all files that its result names."""
    root, nodes = tmp_path / "mine", Nodes()
    runner = executor(root, nodes)
    assert set(bench(root, runner, seeds=1).values()) == {"done"}
    start = {"run": SPEC.run_id, "hash": SPEC.hash}
    for seed in (5, 6):
        runner.start(replace(SPEC, seed=seed, start=start, sources={"teacher": dict(start)}))
    assert sources_of(replace(SPEC, start=start, sources={"teacher": dict(start)})) == [SPEC.run_id]
    assert set(nodes.sent[-1][2][SPEC.run_id]) >= {"result.json", "final.ckpt", "summary.json", "spec.json"}
    assert nodes.kept == 1, "it goes to the cluster once"
    list(runner.ended())
    found = RunFolder(Training.trained[-1][1], SPEC.run_id)
    assert found.path != RunFolder(root, SPEC.run_id).path and found.result() is not None


def test_a_shared_folder_is_worked_in(tmp_path: Path) -> None:
    root, nodes = tmp_path / "mine", Nodes()
    assert set(bench(root, executor(root, nodes, shared=True, devices=2), seeds=2).values()) == {"done"}
    assert {place for _, place, _ in Training.trained} == {root} and [files for _, files, _ in nodes.sent] == [[], []]


def test_what_arrives_in_part_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full before the last file: nothing says yet that the run is done."""
    written: list[str] = []

    def full(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise StoreError("no space left")
        written.append(path.name)

    monkeypatch.setattr(parcels, "write_bytes", full)
    with pytest.raises(StoreError):
        parcels.unpack(tmp_path, {"result.json": b"{}", "summary.json": b"{}", "zebra.txt": b"", "../evil": b""})
    assert written == ["summary.json", "zebra.txt"]


def test_the_best_weights_are_read_after_the_checkpoint_that_counts_on_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SPEC.run_id)
    for name in ("best.ckpt", "step-00000003.ckpt", ".half.ckpt", "lock.json"):
        write_bytes_in(run.path / name)
    box = parcels.Outbox(run, tmp_path / "log")
    assert list(box.packed().files) == ["step-00000003.ckpt", "best.ckpt"]
    (run.path / "step-00000003.ckpt").unlink()
    (tmp_path / "log").write_bytes(b"news")
    parcel = box.packed()
    assert (parcel.files, parcel.removed, parcel.log) == ({}, ("step-00000003.ckpt",), b"news")
    assert box.packed() == parcels.Parcel()


def write_bytes_in(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")


def test_scratch_folders_of_killed_workers_are_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / "scratch/mtlbench-node-4194999-x", tmp_path / "scratch/mtlbench-node-1-x"
    for path in (dead, living):
        path.mkdir()
    write_bytes(dead / "large.ckpt", b"weights")
    root = tmp_path / "mine"
    bench(root, executor(root, Nodes()), seeds=1)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [living.name]


# ---- Ray's few calls -------------------------------------------------------------------------------------------------


class Lost(Exception):
    pass


class Crashed(Lost):
    pass


class Faulty(Lost):
    pass


class Task:
    """The generator of a task that has yielded one result so far."""

    def __init__(self, *results: Any):
        self.results = list(results)

    def __next__(self) -> Any:
        return self.results.pop(0)


def ray_of(nodes: list[dict[str, Any]], results: list[Any]) -> RayCluster:
    """Returns the adapter over a Ray whose tasks yield the given results; an exception is raised by ``get``."""

    def get(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def ready(tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [task for task in tasks if not isinstance(task, Task) or task.results], []

    found = RayCluster.__new__(RayCluster)
    errors = SimpleNamespace(
        RayError=Lost, WorkerCrashedError=Crashed, OutOfMemoryError=type("Memory", (Lost,), {}), RayTaskError=Faulty
    )
    found.ray = SimpleNamespace(nodes=lambda: nodes, get=get, exceptions=errors, wait=ready)
    found.nodes, found._room, found._looked = 1, 0, -100.0
    return found


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (Parcel(ExitCode.DONE), ExitCode.DONE),
        (Crashed("segfault"), -signal.SIGKILL),
        (Faulty("no module"), ExitCode.FAILED),
        (Lost("node"), ExitCode.STOPPED),
        (None, ExitCode.STOPPED),
    ],
)
def test_what_the_end_of_a_task_means_for_its_run(last: Any, code: int | None) -> None:
    """A lost node does not count as a lost run, which the bench would repeat only twice."""
    results = [Parcel(log=b"a")] + ([last] if last is not None else [])
    parcels, found = ray_of([], []).arrived(_Ticket([iter(results)]))
    assert found == code and parcels[0].log == b"a"
    if isinstance(last, Faulty):
        assert b"no module" in parcels[-1].log


@pytest.mark.parametrize(
    ("first", "second", "code", "ended"),
    [
        (Parcel(), Parcel(ExitCode.DONE), None, []),  # Node 1 is done, and node 0 still writes the result.
        (Parcel(ExitCode.DONE), Parcel(ExitCode.DONE), ExitCode.DONE, []),
        (Parcel(ExitCode.STOPPED), Parcel(ExitCode.DONE), ExitCode.STOPPED, []),
        (Parcel(ExitCode.NOT_OURS), Parcel(), ExitCode.NOT_OURS, [1]),
        (Parcel(), Parcel(ExitCode.FAILED), ExitCode.FAILED, [0]),
        (Lost("node"), Parcel(), ExitCode.STOPPED, [1]),
    ],
)
def test_a_run_on_two_nodes_ends_with_both_or_with_the_first_that_falls(
    first: Any, second: Any, code: int | None, ended: list[int]
) -> None:
    """Ranks on the other node would wait for those of the fallen one indefinitely."""
    cluster, removed, tasks = ray_of([], []), [], [Task(first), Task(second)]
    cluster.ray.cancel = lambda task, force: removed.append(tasks.index(task))
    cluster.ray.util = SimpleNamespace(remove_placement_group=removed.append)
    assert cluster.arrived(_Ticket(tasks, "group"))[1] == code
    assert removed == ([] if code is None else [*ended, "group"])


def test_runs_at_once_are_what_fits_into_living_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    big, small = {"CPU": 16.0, "GPU": 4.0, "memory": 64 * 2.0**30}, {"CPU": 3.0, "memory": 8 * 2.0**30}
    nodes = [{"Alive": alive, "Resources": each} for each, alive in ((big, True), (small, True), (big, False))]
    cluster = ray_of(nodes, [])
    for options, devices, room in (
        (RayOptions(cpus=2), 1, 9),
        (RayOptions(cpus=2), 2, 4),
        (RayOptions(gpus=1), 1, 4),
        (RayOptions(gpus=1), 4, 1),
        (RayOptions(memory=5), 1, 13),
        (RayOptions(gpus=1), 8, 1),
    ):
        cluster.need, cluster._looked = options.need(devices), -100.0
        assert cluster.room() == room, (options, devices)
    nodes.clear()
    assert cluster.room() == 1, "looked at a moment ago"


@pytest.mark.parametrize("fitting", [(0,), (3, 1), (2, 2, 2), (1, 1, 1, 5), (4, 3, 2, 1)])
@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_runs_on_several_nodes_at_once(fitting: tuple[int, ...], nodes: int) -> None:
    """Against placing them one by one, each on the nodes that have most room."""
    left, runs = sorted(fitting, reverse=True), 0
    while len(left) >= nodes and left[nodes - 1] > 0:
        left = sorted((count - (place < nodes) for place, count in enumerate(left)), reverse=True)
        runs += 1
    assert spread(fitting, nodes) == runs
