"""The commit on a report is that of mtlbench, never that of the repository of the user."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mtlbench.study import resolve


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path, package: str) -> Path:
    """Makes a repository with the package in it; returns the file that asks."""
    file = folder / package / "study" / "resolve.py"
    file.parent.mkdir(parents=True)
    file.touch()
    (folder / package / "__init__.py").touch()
    (folder / "mine.txt").touch()
    git(folder, "init", "-q")
    return file


def test_a_checkout_of_mtlbench_has_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the current folder is, and whatever a hook of another repository has set."""
    file = checkout(tmp_path / "clone", "src/mtlbench")
    git(tmp_path / "clone", "add", "-A")
    git(tmp_path / "clone", "commit", "-qm", "First")
    other = tmp_path / "user"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.chdir(other)
    monkeypatch.setattr(resolve, "__file__", str(file))
    head = git(tmp_path / "clone", "rev-parse", "--short", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert resolve._commit() == (head, False)
    (tmp_path / "clone" / "mine.txt").write_text("changed")
    assert resolve._commit() == (head, True)


@pytest.mark.parametrize("place", [".venv/lib/python3.12/site-packages/mtlbench", "src/mtlbench"])
def test_an_installation_inside_a_users_repository_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file = checkout(tmp_path, place)
    git(tmp_path, "add", "mine.txt")
    git(tmp_path, "commit", "-qm", "Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve, "__file__", str(file))
    assert resolve._commit() == (None, False)
