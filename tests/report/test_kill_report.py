"""A report that is killed, or that meets a full disk, at any durable call: every file is the old one or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.errors import ExitCode
from mtlbench.report.views import html
from mtlbench.runs.store import RunFolder
from tests.support.command_line import mtlbench
from tests.support.forge import reseal
from tests.support.instant import OVERRIDES, finished, resolved

FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html", "experts.json")
CALLS = 3 * (len(FILES) + 1)
"""Durable calls of a report: each file and the marker are synced and renamed, and their folder is synced."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing is tidied up."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("report")
    finished(folder / "results", resolved())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("score_figures", "training_figures", "affinity_figures", "sharing_figures", "usage_figures"):
            patch.setattr(html, name, lambda *_: {})
        assert mtlbench(folder, "report", "digits").code == 0
        yield folder


def change(root: Path, score: float) -> None:
    """Gives one run another score, as a training after a changed rule would."""
    [run] = [RunFolder(root, path.name) for path in root.glob("uniform-*")]
    reseal(run.path, lambda result: result["scores"]["left"].update({"accuracy@1": score}))


def content(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in FILES}


def at_call(number: int, then: Callable[[], None]) -> Callable[[Any], Any]:
    """Returns a wrapper of durable calls; their ``number``-th does something else."""
    count = 0

    def wrapped(real: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                then()
            return real(*args)

        return call

    return wrapped


def _kill() -> None:
    raise Killed


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", range(1, CALLS + 1))
@pytest.mark.parametrize("then", [_kill, _full])
def test_every_file_is_old_or_new(
    then: Callable[[], None], number: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = place / "results" / "digits"
    change(root, 0.25)
    assert mtlbench(place, "report", "digits").code == 0
    old = content(root)
    change(root, 0.75)
    with monkeypatch.context() as patch:
        wrapped = at_call(number, then)
        patch.setattr(os, "fsync", wrapped(os.fsync))
        patch.setattr(os, "replace", wrapped(os.replace))
        if then is _kill:
            with pytest.raises(Killed):
                mtlbench(place, "report", "digits")
        else:
            answer = mtlbench(place, "report", "digits")
            assert answer.code == ExitCode.REFUSED and "No space left" in answer.text and "Free" in answer.text
            assert not list(root.glob(".*.*-*")), "nothing half is left"
    found = content(root)
    # The same bench again finds every run done, and must not take a mixture for a finished report.
    assert mtlbench(place, "bench", "digits", *OVERRIDES).code == 0
    new = content(root)
    assert b"0.75" in new["leaderboard.csv"] and b"0.75" not in old["leaderboard.csv"]
    assert all(found[name] in (old[name], new[name]) for name in FILES)
    # A file is new once its rename is over, the second of its three calls.
    changed = [name for name in FILES if old[name] != new[name]]
    assert "report.html" in changed
    assert [found[n] == new[n] for n in changed] == [FILES.index(n) < number // 3 for n in changed]


def test_the_number_of_calls_is_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would leave some of them out."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    assert mtlbench(place, "report", "digits").code == 0
    assert calls == ["sync", "rename", "sync"] * (len(FILES) + 1) and len(calls) == CALLS
