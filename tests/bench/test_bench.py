"""The bench runs what is missing, once, whoever asks how often; a failure is a row and not the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench import suite as suites
from mtlbench.errors import ExitCode
from mtlbench.runs.store import read_json
from tests.support.command_line import SMALL, ended, launch, mtlbench, outcome, runs_of

COUNTING = """\
import os
from pathlib import Path
from mtlbench.data_modules import digits

class Digits(digits.Digits):
    def train_dataloader(self):
        with open(Path(__file__).with_name("trainings"), "a") as file:
            file.write("+".join(self.tasks) + "\\n")
        return super().train_dataloader()
"""

NO_TORCH = """\
import sys
from mtlbench import cli
code = cli.main(sys.argv[1:])
heavy = {"torch", "lightning", "timm", "sklearn", "torchmetrics"}
print("imported:", *sorted(heavy & set(sys.modules)))
sys.exit(code)
"""


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A folder with ``digits`` of three tasks, whose data module writes a line for every training that starts."""
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "experiments").mkdir()
    text = suites.locate("digits").read_text().replace("  right: {}\n  sum: {}\n", "")
    (tmp_path / "experiments/digits.yaml").write_text(text)
    return tmp_path


def words(*more: str) -> tuple[str, ...]:
    return ("bench", "digits", "data.module=counting:Digits", *SMALL, "trainer.steps=4", *more)


def trainings(folder: Path) -> list[str]:
    return sorted((folder / "trainings").read_text().split())


def test_finished_study_is_answered_at_once_and_without_torch(counted: Path) -> None:
    first = mtlbench(counted, *words("--methods", "uniform single_task"))
    assert first.code == 0, first.text
    before = {label: outcome(run) for label, run in runs_of(counted).items()}
    page = (counted / "results/digits/leaderboard.md").read_text()
    assert "Encoder**: vit\\_tiny\\_patch16\\_224, weights: random" in page
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words("--methods", "uniform single_task")],
        cwd=counted,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    table = [line for line in first.text.splitlines() if line.startswith("uniform")]
    assert table and [line for line in done.stdout.splitlines() if line.startswith("uniform")] == table
    assert {label: outcome(run) for label, run in runs_of(counted).items()} == before
    assert trainings(counted) == sorted(["left+ink+segments", "left", "ink", "segments"])


def test_changed_source_data_or_override_makes_another_study(counted: Path) -> None:
    assert mtlbench(counted, *words("--methods", "uniform")).code == 0
    studies = counted / "results" / "digits" / "studies"
    (key,) = [path.stem for path in studies.iterdir()]
    (counted / "counting.py").write_text(COUNTING + "\n# Changed.\n")
    again = mtlbench(counted, *words("--methods", "uniform"))
    assert again.code == 0 and "1 runs: 1 done" in again.text, again.text
    assert len(list(studies.iterdir())) == 2 and (read_json(studies / f"{key}.json") or {})["key"] == key
    assert len(trainings(counted)) == 1


def test_studies_share_runs(counted: Path) -> None:
    assert mtlbench(counted, *words("--methods", "single_task")).code == 0
    wider = mtlbench(counted, *words("--methods", "single_task uniform", "trainer.workers=1"))
    assert wider.code == 0 and "4 runs: 3 done, 1 to do" in wider.text, wider.text
    assert len(trainings(counted)) == 4
    seeds = mtlbench(counted, *words("--methods", "uniform", "--seeds", "2"))
    assert "2 runs: 1 done, 1 to do" in seeds.text
    assert len(trainings(counted)) == 5


def test_dry_bench_runs_nothing(counted: Path) -> None:
    answer = mtlbench(counted, *words("--methods", "uniform", "--dry"))
    assert answer.code == 0 and "1 runs: 1 to do" in answer.text
    assert not (counted / "trainings").exists() and not (counted / "results").exists(), "a dry run leaves no folder"
    for line in ("1 methods (uniform)", "× 3 tasks (left, ", "× 1 seeds (0)", "4 steps each", "Time: not known yet"):
        assert line in answer.text, answer.text
    assert mtlbench(counted, *words("--methods", "uniform")).code == 0
    more = mtlbench(counted, *words("--methods", "uniform", "--seeds", "3", "--dry"))
    assert "3 runs: 1 done, 2 to do" in more.text and "Time: about " in more.text and "MB for 2 runs" in more.text


def test_two_benches_on_one_folder_train_every_run_once(counted: Path) -> None:
    command = words("--methods", "single_task uniform", "--jobs", "2")
    benches = [launch(counted, *command), launch(counted, *command)]
    answers = [ended(bench) for bench in benches]
    assert [answer.code for answer in answers] == [0, 0], answers
    assert len(trainings(counted)) == 4 and len(set(trainings(counted))) == 4
    for path in counted.glob("results/**/*.json"):
        json.loads(path.read_text())
    names = [path.name for path in counted.glob("results/digits/*/*")]
    assert [name for name in names if name.startswith(".") or name == "lock.json"] == []
    assert {run.state() for run in runs_of(counted).values()} == {"done"}


def test_one_failing_run_is_a_row_and_the_others_finish(counted: Path) -> None:
    broken = "assert list(self.tasks) != ['ink'], 'no ink today'\n        return super"
    (counted / "counting.py").write_text(COUNTING.replace("return super", broken))
    answer = mtlbench(counted, *words("--methods", "single_task uniform"))
    assert answer.code == 1
    assert "AssertionError: no ink today" in answer.text and "1 run(s) failed; RETRY=1" in answer.text
    states = mtlbench(counted, "status", "digits")
    assert states.code == 1 and "3 done, 1 failed" in states.text.replace("1 failed, 3 done", "3 done, 1 failed")
    report = mtlbench(counted, "report", "digits")
    assert report.code == 1 and "no ink today" in report.text
    (counted / "counting.py").write_text(COUNTING)
    assert mtlbench(counted, *words("--methods", "single_task uniform")).code == 1, "not tried again unasked"
    mended = mtlbench(counted, *words("--methods", "single_task uniform", "--retry"))
    assert mended.code == 0, mended.text
    assert trainings(counted).count("ink") == 2 and len(trainings(counted)) == 5


def test_run_and_bench_share_their_results(counted: Path) -> None:
    alone = mtlbench(counted, "run", *words("--method", "uniform")[1:])
    assert alone.code == 0 and ": done" in alone.text, alone.text
    assert mtlbench(counted, *words("--methods", "uniform")).code == 0
    assert len(trainings(counted)) == 1


def test_worker_that_exits_well_without_a_result_fails_after_the_retries(counted: Path) -> None:
    (counted / "counting.py").write_text(COUNTING.replace("return super", "os._exit(0)\n        return super"))
    answer = mtlbench(counted, *words("--methods", "uniform"))
    assert answer.code == 1 and "NoResult: The process ended 3 times with exit code 0" in answer.text, answer.text
    assert len(trainings(counted)) == 3


def test_bench_whose_reader_leaves_before_the_end_is_no_success(counted: Path) -> None:
    command = [sys.executable, "-m", "mtlbench.cli", *words("--methods", "uniform")]
    process = subprocess.Popen(command, cwd=counted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == ExitCode.BROKEN_PIPE and process.stderr.read() == ""
    assert not (counted / "trainings").exists()
    assert mtlbench(counted, *words("--methods", "uniform")).code == 0
    report = f"{sys.executable} -m mtlbench.cli report digits | head -c 1 > first; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", report], cwd=counted, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, ""), "all files of the report are written"


@pytest.mark.parametrize("content", ["{}", '{"suite": "digits", "rows": [{}]}', '{"suite": "digits", "rows": [1]}'])
def test_damaged_record_of_a_study_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "results/digits").mkdir(parents=True)
    (tmp_path / "results/digits/study.json").write_text(content)
    for command in ("status", "report"):
        answer = mtlbench(tmp_path, command, "digits")
        assert answer.code == ExitCode.REFUSED and "study.json is damaged" in answer.text, answer.text
