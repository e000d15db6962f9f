"""What can be refused without torch is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench.errors import ExitCode

WATCHED = """\
import sys
from mtlbench.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print("heavy:", *sorted({"torch", "lightning", "timm", "sklearn"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["bench", "digitz"], "Did you mean 'digits'"),
        (["bench", "digits", "--sede", "3"], "unrecognized arguments"),
        (["bench", "bad.yaml"], "not valid YAML"),
        (["bench", "digits", "trainer.steps=0", "--methods", "unifrom"], "trainer.steps must be at least 1"),
        (["bench", "digits", "trainer.stepz=1"], "Did you mean 'steps'"),
        (["bench", "digits", "--seeds", "x"], "SEEDS must be"),
        (["run", "digits", "--method", "uniform", "--set", "optimiser.lr=-1"], "optimiser.lr must be above 0"),
        (["data", "digits", "trainer.steps=many"], "must be a whole number"),
        (["check", "unifrom"], "Did you mean 'uniform'"),
        (["check", "uniform", "scale"], "form KEY=VALUE"),
        (["predict", "results/absent", "a.png"], "is not a run's folder"),
        (["extract", "results/absent"], "is not a run's folder"),
        (["export", "results/absent", "--to", "shared"], "is not a run's folder"),
        (["video", "digits"], "must hold a study"),
        (["status", "digits", "trainer.steps=1"], "mtlbench bench"),
        (["report", "digits"], "must hold a study"),
    ],
    ids=" ".join,
)
def test_a_refusal_needs_no_torch(words: list[str], fact: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [unclosed\n")
    command = [sys.executable, "-c", WATCHED, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ExitCode.REFUSED and fact in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:", done.stdout


def test_the_watch_sees_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WATCHED, "bench", "digits", "--methods", "unifrom", "--dry"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ExitCode.REFUSED and "torch" in done.stdout.splitlines()[-1]
