"""The bounded local folder: its size on the disk, which files give way, several processes, and faults."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mtlbench.data.space import BLOCK, DRAFT, Space
from mtlbench.errors import DataError


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def put(space: Space, name: str, size: int = BLOCK) -> Path:
    return space.get(name, size, lambda: name[0].encode() * size)


def test_it_never_exceeds_its_limit_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    space = Space(tmp_path / "here", 4 * BLOCK)
    for number in range(9):
        put(space, f"{number}", BLOCK // 2 + number)
        put(space, "0", BLOCK // 2)
        assert on_disk(space.folder) == space.used() <= 4 * BLOCK
    assert {path.name for path in space.folder.glob("[!.]*")} == {"0", "8", "7", "6"}
    assert put(space, "large", 3 * BLOCK).read_bytes() == b"l" * 3 * BLOCK and space.used() == 4 * BLOCK


def test_a_file_is_fetched_if_it_is_not_there_whole(tmp_path: Path) -> None:
    space, calls = Space(tmp_path, 10 * BLOCK), []

    def fetch() -> bytes:
        calls.append(1)
        return b"12345"

    assert space.get("a", 5, fetch) == space.get("a", 5, fetch) and len(calls) == 1
    (tmp_path / "a").write_bytes(b"12")  # after a power failure
    assert space.get("a", 5, fetch).read_bytes() == b"12345" and len(calls) == 2
    (tmp_path / "a").unlink()
    space.fill("a", 5, fetch)
    space.fill("a", 5, fetch)
    assert space.get("a", 5, fetch).read_bytes() == b"12345" and len(calls) == 3


def test_two_that_want_a_file_wait_for_one_fetch(tmp_path: Path) -> None:
    calls, begun = [], threading.Event()

    def fetch() -> bytes:
        calls.append(1)
        begun.set()
        time.sleep(0.05)
        return b"x"

    one = threading.Thread(target=Space(tmp_path, BLOCK).get, args=("a", 1, fetch))
    one.start()
    assert begun.wait(10)
    Space(tmp_path, BLOCK).fill("a", 1, fetch)
    assert not (tmp_path / "a").exists(), "what is on its way is not waited for by those who read ahead"
    Space(tmp_path, BLOCK).get("a", 1, fetch)
    one.join()
    assert len(calls) == 1 and (tmp_path / "a").read_bytes() == b"x"


def test_the_draft_of_a_killed_process_goes(tmp_path: Path) -> None:
    space = Space(tmp_path, 2 * BLOCK)
    (tmp_path / DRAFT).write_bytes(b"d" * 2 * BLOCK)
    put(space, "a")
    assert not (tmp_path / DRAFT).exists() and space.used() == BLOCK


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"at least one file of a shard. a takes 8,192 bytes of 4,096. Raise data.opt"):
        put(Space(tmp_path, BLOCK), "a", BLOCK + 1)

    def full(path: Path, content: Any) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device. Lower data.options.space, or name another folder"):
        put(Space(tmp_path, BLOCK), "a")
    assert list(tmp_path.glob("[!.]*")) == [] and not (tmp_path / DRAFT).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="need a local folder"):
        put(Space(tmp_path / "file", BLOCK), "a")
