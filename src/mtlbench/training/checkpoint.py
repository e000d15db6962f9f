"""Checkpoints that survive a kill, a full disk and a flipped byte: written beside, synced, renamed, hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from mtlbench.errors import StoreError, shortened
from mtlbench.runs.seal import digest_file, matches, sha256_of
from mtlbench.runs.store import sync_folder, temporary

KEEP = 2
FINAL = "final.ckpt"


def path_of(folder: Path, step: int) -> Path:
    """Returns where the checkpoint of an optimiser step lies."""
    return folder / f"step-{step:08d}.ckpt"


def step_of(path: Path | None) -> int:
    """Return the optimiser step of a checkpoint that `path_of` named; 0 without one."""
    return int(path.stem.removeprefix("step-")) if path else 0


def newest(folder: Path) -> Path | None:
    """Returns the newest checkpoint whose content matches its hash; damaged ones are skipped, and the log says so."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if matches(path):
            return path
        print(f"Checkpoint {path.name} does not match its sha256 and is skipped. An older one or a new start follows.")
    return None


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write one checkpoint so that the folder holds a good one at every moment.

    Raises:
        StoreError: If the folder cannot be written or the disk is full; the older checkpoint stays.
    """
    beside = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        digest = beside.with_name(beside.name + ".sha256")
        with digest.open("w") as file:  # Synced as well: a power cut must not leave good weights without their hash.
            file.write(sha256_of(beside))
            file.flush()
            os.fsync(file.fileno())
        os.replace(digest, digest_file(path))
        os.replace(beside, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        for left in (beside, beside.with_name(beside.name + ".sha256")):
            with contextlib.suppress(OSError):
                left.unlink()
        # torch wraps the error of the disk, or fails because of it.
        if isinstance(error, RuntimeError) and "write" not in str(error) and not isinstance(error.__context__, OSError):
            raise
        raise StoreError(
            f"A checkpoint must be writable. Writing {path} failed: {error}. The last good checkpoint is kept. "
            "Free space or choose another folder with RESULTS=."
        ) from error


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read tensors and plain values only, so that a malicious pickle does not run.

    Raises:
        StoreError: If the file is no checkpoint, or holds anything else.
    """
    try:
        found = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # Of pickle, zip, torch or the disk, by what the file holds.
        raise StoreError(
            f"A checkpoint must hold tensors and plain values only. {path}: {type(error).__name__}: "
            f"{shortened(str(error))}. Delete the run's folder and run the bench again to train it anew."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict", {}), Mapping):
        raise StoreError(f"A checkpoint must map names to values. {path} holds another object. Train the run anew.")
    return found


def verified(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Reads a checkpoint after comparing it with its hash.

    Args:
        path: The checkpoint.
        sha256: The hash it must have. Default: the one in the file beside it.

    Raises:
        StoreError: If it is absent or damaged.
    """
    if not matches(path, sha256):
        raise StoreError(
            f"Weights must match their sha256. {path} is absent or damaged. Put back the file from a copy, or delete "
            "the run's folder and run the bench again to train it anew."
        )
    return load(path)


def final(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the weights of a finished run after comparing them with the hash in its result.

    Args:
        folder: The run's folder.
        result: Its result. Those of earlier versions hold no hash; the one in the file beside the weights counts then.

    Raises:
        StoreError: If the weights are absent or damaged.
    """
    about = result.get("files", {}).get(FINAL)
    return verified(folder / FINAL, about["sha256"] if about else None)


class CheckpointFiles(CheckpointIO):
    """Reads and writes Lightning's checkpoints with the guarantees of this module."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint and removes all but the newest two."""
        save(checkpoint, Path(path))
        for old in sorted(Path(path).parent.glob("step-*.ckpt"))[:-KEEP]:
            self.remove_checkpoint(old)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, tensors and plain values only."""
        return load(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint and its hash."""
        Path(path).unlink(missing_ok=True)
        digest_file(Path(path)).unlink(missing_ok=True)


def state_sha256(state: Mapping[str, Any]) -> str:
    """Returns a SHA-256 over names and bytes of all tensors and values, equal for bit-identical states."""
    sha = hashlib.sha256()
    for name, value in sorted(_leaves(state, ""), key=lambda leaf: leaf[0]):
        sha.update(name.encode())
        if isinstance(value, torch.Tensor):
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()


def _leaves(state: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, f"{name}/{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from _leaves(value, f"{name}/{index}")
    else:
        yield name, state
