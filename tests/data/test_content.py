"""The default fingerprint: it follows the content of the root, and neither its place nor hidden files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtlbench.data import MTLDataModule, Samples
from mtlbench.data.content import content_of
from mtlbench.testing import check_data_module


class Plain(MTLDataModule):
    """A data module that does not say what identifies its data."""

    TASKS = {}

    def samples(self, split: str) -> Samples:
        raise NotImplementedError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "below/b.npy"):
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
        os.utime(path, ns=(10**18, 10**18))
    return tmp_path / "one"


@pytest.mark.parametrize("change", ["size", "time", "name", "new", "gone"])
def test_every_change_of_the_content_is_seen(root: Path, change: str) -> None:
    before = Plain(str(root)).fingerprint()
    assert before == Plain(str(root)).fingerprint() and len(before) == 16
    path = root / "below" / "b.npy"
    {
        "size": lambda: (path.write_bytes(b"12345"), os.utime(path, ns=(10**18, 10**18))),
        "time": lambda: os.utime(path, ns=(10**18, 10**18 + 1)),
        "name": lambda: path.rename(path.with_name("c.npy")),
        "new": lambda: (root / "c").write_bytes(b""),
        "gone": path.unlink,
    }[change]()
    assert Plain(str(root)).fingerprint() != before


def test_neither_the_place_nor_hidden_files_nor_dead_links_matter(root: Path) -> None:
    before = content_of(root)
    (root / ".DS_Store").write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_bytes(b"x")
    assert content_of(root.rename(root.with_name("two"))) == before
    (root.with_name("two") / "dead").symlink_to("nowhere")
    assert content_of(root.with_name("two")) not in ("", before)


def test_without_a_root_nothing_is_known(tmp_path: Path) -> None:
    assert Plain(None).fingerprint() == Plain(str(tmp_path / "absent")).fingerprint() == ""


def test_data_that_nothing_identifies_is_warned_about(root: Path) -> None:
    assert Plain(str(root)).unidentified() is None
    assert "Override fingerprint()" in str(Plain(None).unidentified())
    *_, last = check_data_module(f"{__name__}:Plain")
    assert last.check == "fingerprint is stable" and "Warning: Plain has neither files" in last.detail
