"""A bench from Python is the command: it trains nothing that is done, and refuses what the command refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mtlbench
from mtlbench.api import bench as benches
from mtlbench.errors import MtlbenchError, SuiteError
from tests.support.instant import OVERRIDES, finished, resolved

SETTINGS = dict(text.split("=", 1) for text in OVERRIDES if not text.startswith("methods"))
REQUEST = {"methods": ["single_task", "uniform"], "settings": {k: yaml.safe_load(v) for k, v in SETTINGS.items()}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with two seeds."""
    return finished(tmp_path_factory.mktemp("bench"), resolved("seeds=[0, 1]"))


@pytest.mark.parametrize("seeds", [2, [0, 1]])
def test_a_finished_study_is_only_read(root: Path, seeds: object, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = mtlbench.bench("digits", seeds=seeds, folder=root.parent, **REQUEST)
    assert found.leaderboard().index.tolist() == ["uniform", "single_task"]
    assert found.folder == root and set(found.frame.seed) == {0, 1}
    assert "Written: " in capsys.readouterr().out, "what the command prints is shown"
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == before


def test_the_function_stays_where_the_package_of_its_name_is() -> None:
    import mtlbench.bench.scheduler

    assert callable(mtlbench.bench) and mtlbench.bench.scheduler.Bench


def test_a_fault_of_the_suite_is_raised_before_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_run", None)
    with pytest.raises(SuiteError, match="Did you mean 'digits'"):
        mtlbench.bench("digitz")
    with pytest.raises(SuiteError, match="trainer.stepz"):
        mtlbench.bench("digits", settings={"trainer.stepz": 3})


def test_a_request_becomes_the_words_of_the_command(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(benches, "_run", lambda words: asked.append(words) or (0, ""))
    settings = {"optimiser.lr": 1e-05, "model.encoder": "resnet18", "model.weights": None}
    mtlbench.bench(
        "digits", "uniform", (4, 7), settings=settings, folder=root.parent, jobs=2, devices=1, trials=3, retry=True
    )
    assert asked == [[
        "digits", "optimiser.lr=1e-05", 'model.encoder="resnet18"', "model.weights=null", "--results",
        str(root.parent), "--methods", "uniform", "--seeds", "4,7,", "--jobs", "2", "--devices", "1", "--trials", "3",
        "--retry",
    ]]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "error", "match"),
    [(2, MtlbenchError, "No such data"), (130, KeyboardInterrupt, None), (-9, MtlbenchError, "No such data")],
)
def test_an_exit_code_becomes_an_exception(
    code: int, error: type, match: str | None, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr(benches, "_run", lambda words: (code, "No such data"))
    with pytest.raises(error, match=match):
        mtlbench.bench("digits", folder=root.parent)


def test_failed_runs_are_a_warning(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(benches, "_run", lambda words: (1, "FAILED uniform-s0"))
    with pytest.warns(UserWarning, match="FAILED uniform-s0"):
        assert len(mtlbench.bench("digits", folder=root.parent).frame)


def test_what_a_command_writes_and_how_it_ends_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('Δm'); print('mtlbench: Wrong.', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(benches, "_command", lambda words: [sys.executable, "-c", code])
    assert benches._run([]) == (2, "Wrong.")
    assert capsys.readouterr().out == "Δm\n"


WAITS = """\
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (print("saved", flush=True), sys.exit(130)))
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """\
import sys
from mtlbench.api import bench
bench._command = lambda words: [sys.executable, "-c", sys.argv[1]]
try:
    bench._run([])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_reaches_the_command_once_and_waits_for_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PARENT, WAITS],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background ignores interrupts, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
    text, _ = process.communicate(timeout=20)
    assert (text, process.returncode) == ("saved\ninterrupted\n", 0)
