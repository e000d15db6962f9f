"""A job array on a stand-in for SLURM: every run is trained once, whatever happens to the jobs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlbench.bench.executors import slurm
from mtlbench.bench.executors.slurm import SlurmOptions
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import ExitCode, MtlbenchError
from mtlbench.runs.store import RunFolder, write_json
from tests.support import array_job, slurm_stand_in
from tests.support.command_line import SMALL, mtlbench, wait_for

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the stand-in, whose commands come first on PATH."""
    folder = slurm_stand_in.install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "src"), str(HERE)]))
    yield folder
    slurm_stand_in.stop(folder)


def test_forty_runs_over_four_jobs_of_which_one_is_killed_and_one_comes_back(cluster: Path, tmp_path: Path) -> None:
    root = tmp_path / "results" / "mine"
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.support.array_job", str(root)]
    text = slurm.script(command, root, SlurmOptions(idle=0), place=tmp_path)
    assert slurm.submit(root, slurm.write(root, text)) == "77"

    def trained() -> list[int]:
        return [int(line) for line in (root / "trained").read_text().split()] if (root / "trained").exists() else []

    def pid(task: int) -> int:
        return int(wait_for(lambda: slurm_stand_in.state(cluster, f"77_{task}")[1:], seconds=10)[0])

    wait_for(lambda: len(trained()) >= 6, seconds=20)
    assert slurm.queue(root).startswith("SLURM array 77: ") and "running" in slurm.queue(root)
    os.killpg(pid(1), signal.SIGKILL)
    os.kill(pid(2), signal.SIGUSR1)
    ids = [f"77_{task}" for task in range(4)]
    wait_for(lambda: all(slurm_stand_in.state(cluster, job)[0].lstrip("-").isdigit() for job in ids), seconds=30)
    assert sorted(trained()) == list(range(40)), "each run once"
    assert [slurm_stand_in.state(cluster, job)[0] for job in ids] == ["0", "-9", "0", "0"]
    assert {RunFolder(root, spec.run_id).state() for spec in array_job.RUNS} == {"done"}
    logs = [(root / "slurm" / f"{job}.log").read_text() for job in ids]
    assert "left" in logs[2] and "end" in logs[2], "asked to leave, and back in the queue"
    assert "end ['done']" in logs[0], "the first job stays until the study is done"
    assert slurm.queue(root) == "SLURM array 77: no job is in the queue."


@pytest.mark.parametrize("patience", [0.0, 0.5])
def test_an_idle_bench_ends_while_others_train(
    patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtlbench.bench.scheduler.check_run", lambda spec: None)
    last = RunFolder(tmp_path, array_job.RUNS[7].run_id)
    for spec in array_job.RUNS:
        assert RunFolder(tmp_path, spec.run_id).claim(spec)
        if spec.run_id != last.run_id:
            RunFolder(tmp_path, spec.run_id).finish({"hash": spec.hash})
    looks = []
    bench = Bench(
        tmp_path,
        array_job.study(),
        array_job.Lasting(tmp_path),
        record=False,
        watch=looks.append,
        patience=patience,
    )
    assert bench.run()[last.run_id] == "running" and bench.left == [last.run_id]
    assert len(looks) == 1 if patience == 0 else len(looks) > 1


def test_the_script_runs_the_same_bench_in_every_job(cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "executor.yaml").write_text("slurm:\n  jobs: 3\n  sbatch: ['--gres=gpu:1']\n  setup: ['export A=1']\n")
    words = ("bench", "digits", *SMALL, "trainer.steps=4", "--methods", "uniform pcgrad", "--retry")
    answer = mtlbench(tmp_path, *words, "--executor", "slurm", "--option", "lead=60")
    assert answer.code == 0 and "an array of 3 jobs" in answer.text and "sbatch results" in answer.text, answer.text
    text = (tmp_path / "results/digits/slurm/jobs.sh").read_text()
    for line in ("--array=0-2", "--gres=gpu:1", "--requeue", "--signal=B:USR1@60"):
        assert f"#SBATCH {line}\n" in text
    assert text.index("export A=1") < text.index("-m mtlbench.cli bench digits") and "--executor" not in text
    assert f"cd {tmp_path}" in text and f"--results {tmp_path / 'results'}" in text
    assert "--methods 'uniform pcgrad'" in text and "trainer.steps=4" in text
    assert text.count("--retry") == 1, "the first start of the first job alone repeats what failed"
    assert not list(cluster.glob("77_*")), "nothing is submitted unasked"
    assert not (tmp_path / "results/digits/study.json").exists()


def test_status_says_what_the_queue_knows(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm.queue(tmp_path) == ""
    (tmp_path / "slurm").mkdir()
    write_json(tmp_path / "slurm" / "submitted.json", {"arrays": ["77", "; rm -rf /", 5]})
    for task, state in enumerate(["RUNNING 1", "PENDING", "0"]):
        (cluster / f"77_{task}").write_text(state)
    assert slurm.queue(tmp_path) == "SLURM array 77: 1 pending, 1 running."
    for task in range(2):
        (cluster / f"77_{task}").write_text("0")
    monkeypatch.setenv("PATH", "")
    assert "squeue is not on this machine" in slurm.queue(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--submit",), "or omit it"),
        (("--option", "jobs=2"), "for executors beyond this machine"),
        (("--executor", "slurm", "--option", "job=2"), "Did you mean 'jobs'"),
        (("--executor", "slurm", "--option", "jobs=0"), "must be at least 1"),
        (("--executor", "slurm", "--option", "jobs=two"), "must be a whole number"),
        (("--executor", "slurm", "--option", "jobs"), "KEY=VALUE"),
        (("--executor", "slurm", "--option", "sbatch=a\nb"), "one line"),
    ],
)
def test_options_that_cannot_be_meant(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", *words)
    assert answer.code == ExitCode.REFUSED and said in answer.text, answer.text
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("slurm: [1]", "one section of KEY: VALUE"),
        ("slurm: {jobs: yes}", "must be a whole number"),
        ("slurm: {sbatch: [1]}", "text of one line"),
        ("slurm: {sbatch: --x}", "must be a list"),
        ("slurm: &a {}", "anchors"),
    ],
)
def test_a_file_of_options_that_cannot_be_meant(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "executor.yaml").write_text(content)
    answer = mtlbench(tmp_path, "bench", "digits", "--executor", "slurm")
    assert answer.code == ExitCode.REFUSED and said in answer.text and "executor.yaml" in answer.text, answer.text


def test_a_refusal_of_sbatch_is_passed_on(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = slurm.script(["true"], tmp_path, SlurmOptions(sbatch=["--refuse=all"]), place=tmp_path)
    path = slurm.write(tmp_path, text)
    with pytest.raises(MtlbenchError, match="invalid partition"):
        slurm.submit(tmp_path, path)
    assert slurm.queue(tmp_path) == ""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MtlbenchError, match="not on PATH"):
        slurm.submit(tmp_path, path)
