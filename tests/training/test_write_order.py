"""What is durable when: the order of sync, hash and rename, as a power cut would see it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mtlbench.errors import StoreError
from mtlbench.runs import seal, store
from mtlbench.training import checkpoint
from tests.runs.test_store import SPEC


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records renames, with whether the file was synced as it is, hashes of files, and syncs of the folder."""
    found: list[str] = []
    known: dict[int, int] = {}
    fsync, replace, hashed = os.fsync, os.replace, seal.sha256_of

    def hash_of(path: Path) -> str:
        status = path.stat()
        whole = known.get(status.st_ino) == status.st_size > 0
        found.append(f"hash {path.name.lstrip('.').partition('.')[0]}, {'synced whole' if whole else 'not synced'}")
        return hashed(path)

    def sync(handle: int) -> None:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            found.append("sync folder")
        else:
            known[status.st_ino] = status.st_size
        fsync(handle)

    def rename(old: Path, new: Path) -> None:
        status = Path(old).stat()
        whole = known.get(status.st_ino) == status.st_size > 0
        found.append(f"rename {Path(new).name}, {'synced whole' if whole else 'not synced'}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    for module in (seal, checkpoint):
        monkeypatch.setattr(module, "sha256_of", hash_of)
    yield found


def test_a_checkpoint_appears_last_and_whole(calls: list[str], tmp_path: Path) -> None:
    path = checkpoint.path_of(tmp_path, 7)
    checkpoint.save({"step": 7, "state_dict": {"w": torch.ones(3)}}, path)
    assert calls == [
        "hash step-00000007, synced whole",
        "rename step-00000007.ckpt.sha256, synced whole",
        "rename step-00000007.ckpt, synced whole",
        "sync folder",
    ]
    written = path.with_name(path.name + ".sha256").read_text()
    assert written == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.verified(path)["step"] == checkpoint.step_of(path) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".sha256"], "nothing else is left"


def test_a_json_file_is_synced_before_it_appears(calls: list[str], tmp_path: Path) -> None:
    store.write_json(tmp_path / "result.json", {"a": 1})
    assert calls == ["rename result.json, synced whole", "sync folder"]


def test_a_result_appears_after_the_files_that_it_names(calls: list[str], tmp_path: Path) -> None:
    """A power cut in between leaves a run that is not done, and never a result whose weights are half."""
    run = store.RunFolder(tmp_path, SPEC.run_id)
    run.path.mkdir()
    checkpoint.save({"step": 7}, run.path / "final.ckpt")
    store.write_json(run.path / "summary.json", {"a": 1})
    store.write_bytes(run.path / "examples.npz", b"pictures")
    written = len(calls)
    run.finish({"hash": SPEC.hash}, ("final.ckpt", "summary.json", "examples.npz"))
    assert calls[written:] == [
        "hash final, synced whole",
        "hash summary, synced whole",
        "hash examples, synced whole",
        "rename result.json, synced whole",
        "sync folder",
    ]


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 5])
def test_no_failure_costs_the_older_checkpoint(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever sync or rename the disk refuses, the newest good checkpoint is readable and nothing half is left."""
    older, newer = checkpoint.path_of(tmp_path, 1), checkpoint.path_of(tmp_path, 2)
    checkpoint.save({"step": 1}, older)
    count = 0

    def refusing(real):
        def call(*args):
            nonlocal count
            count += 1
            if count == fails_at:
                raise OSError(28, "No space left on device")
            return real(*args)

        return call

    monkeypatch.setattr(os, "fsync", refusing(os.fsync))
    monkeypatch.setattr(os, "replace", refusing(os.replace))
    with pytest.raises(StoreError, match="No space left"):
        checkpoint.save({"step": 2}, newer)
    # The last call syncs the folder, when the newer one stands there already.
    step = 2 if fails_at == 5 else 1
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, step)
    assert checkpoint.verified(older) == {"step": 1}
    assert not list(tmp_path.glob(".*"))


def test_only_the_two_newest_checkpoints_stay(tmp_path: Path) -> None:
    files = checkpoint.CheckpointFiles()
    for step in (1, 2, 10):
        files.save_checkpoint({"step": step}, checkpoint.path_of(tmp_path, step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.ckpt",
        "step-00000002.ckpt.sha256",
        "step-00000010.ckpt",
        "step-00000010.ckpt.sha256",
    ]
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 10)
