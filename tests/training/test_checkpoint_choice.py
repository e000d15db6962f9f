"""Which checkpoint a run resumes from, whatever stands in the files beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench.training import checkpoint


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\x00", b"0" * 64, b"not a hash\n"])
def test_garbage_in_a_hash_skips_its_checkpoint(garbage: bytes, tmp_path: Path) -> None:
    older, newer = checkpoint.path_of(tmp_path, 1), checkpoint.path_of(tmp_path, 2)
    for path in (older, newer):
        checkpoint.save({"step": 1}, path)
    assert checkpoint.newest(tmp_path) == newer
    newer.with_name(newer.name + ".sha256").write_bytes(garbage)
    assert checkpoint.newest(tmp_path) == older
    older.with_name(older.name + ".sha256").write_bytes(garbage)
    assert checkpoint.newest(tmp_path) is None
