"""Measures the executors: ``python -m benchmarks.engines [PART ...] [--runs N]``.

overhead  seconds that each executor adds to a run of a few steps
slurm     a job array on a stand-in for SLURM; one job is killed, one comes back
ray       `digits` and `scenes` on Ray, with and without a shared folder, against this machine: every bit of the results
spread    two ranks of every run on two nodes of Ray, one of which is killed, against two ranks on this machine
node      nodes of a Ray cluster are killed in the middle, `--kills` of them one after another, and replaced
head      the head of a Ray cluster is killed in the middle, and the same bench runs again

The last four, and two executors, need Ray: ``pip install "mtlbench[ray]"``. Nodes are processes of this machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlbench.runs.store import RunFolder, read_json
from tests.support import slurm_stand_in
from tests.support.command_line import SMALL, family, kill, outcome, wait_for

HERE = Path(__file__).resolve().parents[1]
COUNTING = """\
from pathlib import Path
from mtlbench.data_modules import digits

class Digits(digits.Digits):
    def train_dataloader(self):
        with open(Path(__file__).with_name("trainings"), "a") as file:
            file.write("+".join(self.tasks) + "\\n")
        return super().train_dataloader()
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE / "src"), str(HERE)])}
if "PYTHONPATH" in os.environ:
    ENVIRONMENT["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]


SHARING = {"shared folder": [], "no shared folder": ["shared=false", "every=1"]}
"""Options of the executor `ray`."""

EXECUTORS = ["local", "slurm", *(f"ray, {name}" for name in SHARING)]

SCENES = ["trainer.batch_size=4", "trainer.log_every=1", "trainer.evaluate_every=0", "floor=false"]
SCENES += [f"data.options.{split}={count}" for split, count in (("train", 64), ("val", 8), ("test", 8))]


def bench(
    folder: Path, *more: str, steps: int, seeds: int = 1, methods: str = "uniform pcgrad", suite: str = "digits"
) -> Any:
    """Starts a bench of small runs in a folder, one per method and seed."""
    module = suite.capitalize()
    (folder / "counting.py").write_text(COUNTING.replace("digits", suite).replace("Digits", module))
    words = [f"data.module=counting:{module}", *(SMALL if suite == "digits" else SCENES)]
    words += [f"trainer.steps={steps}", "trainer.checkpoint_every=10"]
    words += ["--methods", methods, "--seeds", str(seeds), *more]
    command = [sys.executable, "-m", "mtlbench.cli", "bench", suite, *words]
    out = (folder / "output").open("a")
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out)


def ended(process: Any, folder: Path, seconds: float = 500) -> int:
    """Waits for a bench and returns its exit code; what it printed is shown if it failed."""
    code = process.wait(seconds)
    if code:
        print((folder / "output").read_text()[-3000:])
    return code


def done(process: Any, folder: Path) -> None:
    """Waits for a bench and ends this command if it failed."""
    if code := ended(process, folder):
        sys.exit(f"A bench must end with 0. It ended with {code}; its output is above.")


def runs_of(folder: Path) -> dict[str, RunFolder]:
    """Returns the runs of the study by id."""
    studies = {path.parent: read_json(path) or {} for path in folder.glob("results/*/study.json")}
    return {
        run_id: RunFolder(root, run_id)
        for root, study in studies.items()
        for row in study.get("rows", [])
        for run_id in row["runs"]
    }


def finished(folder: Path) -> int:
    """Returns how many runs are done."""
    return sum(run.state() == "done" for run in runs_of(folder).values())


def told(folder: Path, wanted: int, lost: int = 0, ranks: int = 1) -> str:
    """Returns what became of a bench; ``lost`` runs may have started twice, with all their ranks."""
    done, starts = finished(folder), len((folder / "trainings").read_text().split()) // ranks
    verdict = "ok" if done == wanted <= starts <= wanted + lost else "NOT AS IT SHOULD BE"
    return f"{done} of {wanted} runs done, {starts} starts: {verdict}"


@contextmanager
def folder_of(name: str) -> Iterator[Path]:
    """Makes a folder and says how long its bench took."""
    with tempfile.TemporaryDirectory(prefix=f"engines-{name}-") as place:
        yield Path(place)


@contextmanager
def ray_cluster(nodes: int, cpus: int = 1) -> Iterator[Any]:
    """Starts a head node without CPUs, so that runs train on the other nodes only."""
    from ray.cluster_utils import Cluster

    os.environ.update(ENVIRONMENT)
    store = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, **store)
        yield cluster
    finally:
        for node in [*cluster.worker_nodes, cluster.head_node]:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False)


def on(cluster: Any, *options: str) -> list[str]:
    """Returns the arguments that send a bench to a cluster."""
    given = [f"address={cluster.address}", *options]
    return ["--executor", "ray", *(word for option in given for word in ("--option", option))]


def raylet(node: Any) -> int:
    """Returns the process of a node from which all its workers descend."""
    return node.all_processes["raylet"][0].process.pid


def overhead(options: argparse.Namespace) -> None:
    """Prints seconds per run of each executor, one run at a time, beside what the runs themselves took."""
    print("| executor | runs | bench, s | per run, s | of it training, s | added, s |\n|---|---|---|---|---|---|")
    if "local" in options.executors:
        with folder_of("local") as folder:
            _timed("local", folder, options.runs, ["--jobs", "1"])
    if "slurm" in options.executors:
        words = ["--executor", "slurm", "--submit", "--jobs", "1", "--option", "jobs=1"]
        with folder_of("slurm") as folder:
            _timed("slurm (stand-in, 1 job)", folder, options.runs, words)
    sharing = {name: given for name, given in SHARING.items() if f"ray, {name}" in options.executors}
    if not sharing:
        return
    with ray_cluster(1) as cluster:
        for name, given in sharing.items():
            with folder_of("ray") as folder:
                _timed(f"ray, {name}", folder, options.runs, on(cluster, *given))


def _timed(name: str, folder: Path, runs: int, words: list[str]) -> None:
    """Prints the time between runs, from the end of the first one, so that starting the bench does not count."""
    with slurm(folder) as cluster:
        since = time.perf_counter()
        done(bench(folder, *words, steps=4, seeds=runs, methods="uniform"), folder)
        if "slurm" in words:
            wait_for(lambda: idle(cluster), seconds=500, every=0.02)
        seconds = time.perf_counter() - since
    if finished(folder) != runs:
        sys.exit(f"All {runs} runs must finish. {finished(folder)} did. {(folder / 'output').read_text()}")
    found = sorted((run.result() or {} for run in runs_of(folder).values()), key=lambda result: result["finished"])
    training = sum(result["finished"] - result["started"] for result in found[1:]) / (runs - 1)
    each = (found[-1]["finished"] - found[0]["finished"]) / (runs - 1)
    print(f"| {name} | {runs} | {seconds:.1f} | {each:.2f} | {training:.2f} | {each - training:.2f} |", flush=True)


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Puts a stand-in for SLURM first on PATH."""
    with tempfile.TemporaryDirectory() as place:
        cluster = slurm_stand_in.install(Path(place) / "cluster")
        before = ENVIRONMENT["PATH"]
        ENVIRONMENT["PATH"] = f"{cluster}{os.pathsep}{before}"
        try:
            yield cluster
        finally:
            ENVIRONMENT["PATH"] = before
            slurm_stand_in.stop(cluster)


def idle(cluster: Path) -> bool:
    """Returns whether all jobs have ended."""
    states = [slurm_stand_in.state(cluster, path.name)[0] for path in cluster.glob("77_*")]
    return bool(states) and all(state.lstrip("-").isdigit() for state in states)


def array(options: argparse.Namespace) -> None:
    """Trains on four jobs; the second is killed and the third asked to leave once a few runs are done."""
    with folder_of("slurm") as folder, slurm(folder) as cluster:
        words = ["--executor", "slurm", "--submit", "--jobs", "1", "--option", "jobs=4", "--option", "idle=1"]
        since = time.perf_counter()
        done(bench(folder, *words, steps=40, seeds=options.runs), folder)
        wait_for(lambda: finished(folder) >= 3, seconds=500, every=0.2)
        os.killpg(int(slurm_stand_in.state(cluster, "77_1")[1]), signal.SIGKILL)
        os.kill(int(slurm_stand_in.state(cluster, "77_2")[1]), signal.SIGUSR1)
        wait_for(lambda: idle(cluster), seconds=550, every=0.5)
        print(f"slurm: {told(folder, 2 * options.runs, lost=2)}, {time.perf_counter() - since:.0f} s")


def identical(options: argparse.Namespace) -> None:
    """Compares the results of Ray, with and without a shared folder, with those of this machine."""
    for suite in ("digits", "scenes"):
        with folder_of("local") as folder:
            done(bench(folder, "--jobs", str(os.cpu_count()), steps=20, suite=suite), folder)
            here = {run_id: outcome(run) for run_id, run in runs_of(folder).items()}
        for name, given in SHARING.items():
            with ray_cluster(2) as cluster, folder_of("ray") as folder:
                since = time.perf_counter()
                done(bench(folder, *on(cluster, *given), steps=20, suite=suite), folder)
                same = {run_id: outcome(run) for run_id, run in runs_of(folder).items()} == here
                logs = len(list(folder.glob("results/*/logs/*.log")))
                print(
                    f"{suite} on ray, {name}: {told(folder, 2)}, results bit-identical to local: {same}, {logs} logs "
                    f"here, {time.perf_counter() - since:.0f} s",
                    flush=True,
                )


def spread(options: argparse.Namespace) -> None:
    """Compares runs whose two ranks train on two nodes with runs of two ranks here; a node falls in the middle."""
    with folder_of("local") as folder:
        done(bench(folder, "--devices", "2", steps=150), folder)
        here = {run_id: outcome(run) for run_id, run in runs_of(folder).items()}
    with ray_cluster(3) as cluster, folder_of("spread") as folder:
        process = bench(folder, *on(cluster, "nodes=2"), steps=150)
        _replace_a_node(cluster, folder, 0)
        done(process, folder)
        same = {run_id: outcome(run) for run_id, run in runs_of(folder).items()} == here
        print(f"two nodes per run, one lost: {told(folder, 2, lost=1, ranks=2)}, results bit-identical: {same}")


def node_lost(options: argparse.Namespace) -> None:
    """Kills every process of a node while it trains and adds another, several times, in one bench."""
    for name, given in SHARING.items():
        with ray_cluster(2) as cluster, folder_of("node") as folder:
            # Four runs for each node that falls: some must still be training when the last one does.
            process = bench(folder, *on(cluster, *given), steps=150, seeds=2 * options.kills)
            since = time.perf_counter()
            for kills in range(options.kills):
                wait_for(lambda kills=kills: finished(folder) > kills, seconds=400, every=0.2)
                _replace_a_node(cluster, folder, process.pid)
            code, wanted = ended(process, folder, 900), 4 * options.kills
            print(
                f"{options.kills} node(s) lost, {name}: exit {code}, {told(folder, wanted, lost=options.kills)}, "
                f"{time.perf_counter() - since:.0f} s",
                flush=True,
            )


def head_lost(options: argparse.Namespace) -> None:
    """Kills the head node, and runs the same bench on a new cluster."""
    with folder_of("head") as folder:
        with ray_cluster(2) as cluster:
            process = bench(folder, *on(cluster), steps=150, seeds=2)
            wait_for(lambda: finished(folder) >= 1, seconds=300, every=0.2)
            since = time.perf_counter()
            members = [pid for node in (cluster.head_node, *cluster.worker_nodes) for pid in family(raylet(node))]
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            code = process.wait(400)
            print(f"head lost: the bench ends with {code} after {time.perf_counter() - since:.0f} s", flush=True)
            kill(*members)
        before = finished(folder)
        with ray_cluster(2) as cluster:
            code = ended(bench(folder, *on(cluster), steps=150, seeds=2), folder)
            print(f"head started again after {before} runs: exit {code}, {told(folder, 4, lost=2)}", flush=True)


def _replace_a_node(cluster: Any, folder: Path, bench: int) -> None:
    """Kills a node in the middle of a run, and adds another."""

    def busy() -> Any:
        return next((node for node in cluster.worker_nodes if _steps(folder, node, bench) > 30), None)

    victim = wait_for(busy, seconds=200, every=0.1)
    members = family(raylet(victim))
    cluster.remove_node(victim, allow_graceful=False)
    kill(*members)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)


def _steps(folder: Path, node: Any, bench: int) -> int:
    """Returns how far the run is that a node trains. Without a shared folder the bench holds all claims: of any run."""
    owners = {bench, *family(raylet(node))}
    told = [run.progress() for run in runs_of(folder).values() if run.state() == "running"]
    return max((progress.get("step", 0) for progress in told if progress.get("pid") in owners), default=0)


PARTS = {"overhead": overhead, "slurm": array, "ray": identical, "spread": spread, "node": node_lost, "head": head_lost}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=10, help="runs of the parts overhead and slurm")
    parser.add_argument("--executors", nargs="*", default=EXECUTORS, choices=EXECUTORS, help="of the part overhead")
    parser.add_argument("--kills", type=int, default=5, help="nodes that the part node kills")
    chosen = parser.parse_args()
    for part in chosen.parts:
        PARTS[part](chosen)
