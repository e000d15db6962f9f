"""Progress of a bench where its output is no terminal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtlbench.cli.progress import Progress
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder


class FakeBench:
    """Three runs whose states the test sets."""

    def __init__(self, root: Path):
        self.root = root
        spec = RunSpec("s", "mine", 0, {"name": "m"}, {"a": {}, "b": {}}, {}, {}, {}, {"steps": 10})
        self._specs = {f"run{seed}": SimpleNamespace(**{**spec.__dict__, "seed": seed}) for seed in range(3)}
        self._specs["run2"].tasks = {"a": {}}
        self._states = dict.fromkeys(self._specs, "todo")

    def specs(self) -> dict[str, Any]:
        return self._specs

    def states(self) -> dict[str, str]:
        return dict(self._states)

    def state(self, run_id: str) -> str:
        return self._states[run_id]


def test_every_run_that_ends_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    bench: Any = FakeBench(tmp_path)
    monkeypatch.setattr(RunFolder, "progress", lambda self: {"step": 4})
    with Progress() as progress:

        def lines(**changes: str) -> list[str]:
            bench._states |= changes
            progress.update(bench)
            return capsys.readouterr().out.splitlines()

        (first,) = lines(run0="done", run1="running")
        assert "1/3 runs done" in first and "mine s1 4/10" in first and "mine s0" not in first, "it was done before"
        assert lines() == [], "nothing ended, and the last line is not old"
        (second,) = lines(run1="failed", run2="running")
        assert "1/3 runs done, 1 failed" in second and "mine s1 failed; mine [a] s2 4/10" in second
        (third,) = lines(run1="failed", run2="done")
        assert "2/3 runs done" in third and third.endswith("mine [a] s2 done")
