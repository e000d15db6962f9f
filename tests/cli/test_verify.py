"""What the commands make of a damaged results folder: it is told, never shown as a score, never trained unasked."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from mtlbench.errors import ExitCode
from mtlbench.runs.store import RunFolder, read_json, write_json
from tests.support.command_line import Answer, mtlbench, runs_of
from tests.support.instant import OVERRIDES, finished, resolved


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    finished(place / "results", resolved())
    return place


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    """A folder with the results of a finished study of its own."""
    shutil.copytree(whole, tmp_path / "project")
    return tmp_path / "project"


def bench(project: Path, *more: str) -> Answer:
    return mtlbench(project, "bench", "digits", *OVERRIDES, *more)


def uniform(project: Path) -> RunFolder:
    run = runs_of(project)["uniform"]
    return RunFolder(project / "results/digits", run.run_id)


def cells(project: Path) -> set[tuple[str, str]]:
    """Returns the rows and quantities of the table that hold a number."""
    with (project / "results/digits/leaderboard.csv").open() as file:
        return {(row["label"], row["quantity"]) for row in csv.DictReader(file) if row["mean"]}


def test_a_whole_study_has_no_fault(project: Path) -> None:
    answer = mtlbench(project, "status", "digits", "--verify")
    assert answer.code == 0 and "Verified the files of 6 runs: no fault(s)." in answer.text, answer.text
    assert "not sealed" not in answer.text
    assert bench(project).code == 0 and ("uniform", "left") in cells(project)


def test_a_changed_score_is_told_and_not_shown(project: Path) -> None:
    assert bench(project).code == 0
    run = uniform(project)
    path, before = run.path / "result.json", (run.path / "result.json").read_text()
    path.write_text(before.replace("0.634765625", "0.934765625", 1))
    for words in (["status", "digits"], ["report", "digits"], ["bench", "digits", *OVERRIDES]):
        answer = mtlbench(project, *words)
        assert answer.code == ExitCode.FAILED, answer.text
        assert f"FAILED {run.run_id}" in answer.text and "does not match its digest" in " ".join(answer.text.split())
    assert path.read_text() != before and not (run.path / "result.damaged.json").exists(), "nothing was trained"
    assert not [f for f in project.glob("results/digits/leaderboard.*") if "0.934" in f.read_text()]
    assert not {row for row in cells(project) if row[0] == "uniform"}
    path.write_text(before)
    assert bench(project).code == 0 and ("uniform", "left") in cells(project), "the file was put back"


def test_retry_trains_a_damaged_result_anew(project: Path) -> None:
    run = uniform(project)
    path = run.path / "result.json"
    path.write_text(path.read_text().replace("0.634765625", "0.934765625", 1))
    answer = bench(project, "--retry")
    assert answer.code == 0, answer.text
    assert (run.path / "result.damaged.json").exists() and run.state() == "done"
    result = run.result() or {}
    assert result["weights_sha256"] and set(result["files"]) == {"final.ckpt", "summary.json", "examples.npz"}
    assert mtlbench(project, "status", "digits", "--verify").code == 0


@pytest.mark.parametrize("name", ["final.ckpt", "examples.npz"])
def test_verify_reads_what_a_bench_compares_by_size(name: str, project: Path) -> None:
    run = uniform(project)
    content = bytearray((run.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run.path / name).write_bytes(content)
    assert bench(project).code == 0
    answer = mtlbench(project, "status", "digits", "--verify")
    text = " ".join(answer.text.split())
    assert answer.code == ExitCode.FAILED and "1 fault(s)" in text, text
    assert f"{name} is not the file that was written with the result. Put back a copy" in text
    (run.path / name).unlink()
    assert bench(project).code == ExitCode.FAILED, "a file that is absent is noticed at once"


def test_a_damaged_specification_is_mended_by_the_next_bench(project: Path) -> None:
    run = uniform(project)
    before = run.spec()
    (run.path / "spec.json").write_text('{"suite": "digits"}')
    told = mtlbench(project, "status", "digits", "--verify")
    assert told.code == ExitCode.FAILED and "Run the bench again, which writes it anew" in " ".join(told.text.split())
    result = (run.path / "result.json").read_bytes()
    assert bench(project, "--dry").code == 0 and run.spec() is None, "a dry run writes nothing"
    answer = bench(project)
    assert answer.code == 0 and f"spec.json of {run.run_id} was damaged and is written anew" in answer.text
    assert run.spec() == before and (run.path / "result.json").read_bytes() == result
    assert mtlbench(project, "status", "digits", "--verify").code == 0


def test_results_of_an_earlier_version_are_done_and_not_sealed(project: Path) -> None:
    for path in project.glob("results/digits/*/result.json"):
        record = read_json(path) or {}
        write_json(path, {key: value for key, value in record.items() if key not in ("digest", "files")})
    assert bench(project).code == 0 and ("uniform", "left") in cells(project)
    answer = mtlbench(project, "status", "digits", "--verify")
    assert answer.code == 0 and "6 done" in answer.text
    assert "not sealed: written by a version that stored no digest" in " ".join(answer.text.split())
    weights = uniform(project).path / "final.ckpt"
    weights.write_bytes(weights.read_bytes() + b"x")
    answer = mtlbench(project, "status", "digits", "--verify")
    assert answer.code == ExitCode.FAILED and "does not match its sha256" in " ".join(answer.text.split())


def test_verify_names_every_other_damaged_file(project: Path) -> None:
    run = uniform(project)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("{torn\n")
    (run.path / "error.json").write_text("{")
    (run.path / "step-00000002.ckpt").write_bytes(b"half")
    answer = mtlbench(project, "status", "digits", "--verify")
    text = " ".join(answer.text.split())
    assert answer.code == ExitCode.FAILED and "3 fault(s)" in text, text
    for words in ("1 row(s) cannot be read", "the reason of the failure is lost", "starts anew; delete the file"):
        assert words in text


def test_a_changed_record_of_a_study_is_refused_and_written_anew(project: Path) -> None:
    """Its directions of scores and its rows decide the table as much as the scores."""
    path = project / "results/digits/study.json"
    path.write_text(path.read_text().replace('"higher_is_better": true', '"higher_is_better": false', 1))
    for command in ("status", "report"):
        answer = mtlbench(project, command, "digits")
        assert answer.code == ExitCode.REFUSED and "does not match its digest" in answer.text
    assert bench(project).code == 0 and mtlbench(project, "report", "digits").code == 0


def test_a_run_in_the_place_of_another_is_no_result(project: Path) -> None:
    runs = runs_of(project)
    shutil.copy(runs["single_task"].path / "result.json", uniform(project).path / "result.json")
    answer = mtlbench(project, "report", "digits")
    assert answer.code == ExitCode.FAILED and "it is of another run" in " ".join(answer.text.split())


def test_a_narrow_terminal_cuts_no_id_and_no_path(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = uniform(project)
    (run.path / "examples.npz").unlink()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        answer = mtlbench(project, "status", "digits", "--results", str(project / "results"), "--verify")
        lines = answer.text.splitlines()
        assert f"FAILED {run.run_id}: DamagedResult" in answer.text
        assert sum(f"{run.path}/result.json" in line for line in lines) == 2, "once as failed, once as damaged"
        for label, other in runs_of(project).items():
            (line,) = [line for line in lines if f" {other.run_id} " in line and line.startswith(f" {label} ")]
            assert line.split()[1:4] == ["0", other.run_id, "failed" if other.run_id == run.run_id else "done"]
    assert [line.split()[-1] for line in lines if " done " in line] == ["left", "right", "sum", "ink", "segments"]
