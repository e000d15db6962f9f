"""What is opened is closed: a run writes thousands of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtlbench.runs import store

HANDLES = Path("/proc/self/fd")


@pytest.mark.skipif(not HANDLES.exists(), reason="counts open files as Linux shows them")
def test_writing_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir(HANDLES))
    for _ in range(3):
        store.write_json(tmp_path / "result.json", {"a": 1})
    assert len(os.listdir(HANDLES)) == before
