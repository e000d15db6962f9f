"""Seals: digests that show whether a record, or a file that it names, is still what was written. Needs no torch.

A sealed record carries ``digest``, the SHA-256 of its own content, and ``files``: size and SHA-256 of files beside it.
A record without a digest was written by an earlier version. It counts, but nobody can tell whether it was changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.errors import path_part_fault

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file; raises an OSError if it cannot be read."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def digest_of(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a record's canonical JSON (sorted keys, no spaces), its ``digest`` left out."""
    content = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(record: Mapping[str, Any], folder: Path | None = None, names: Iterable[str] = ()) -> dict[str, Any]:
    """Returns a record with its digest, and with size and hash of the named files of a folder."""
    content = json.loads(json.dumps(dict(record)))  # What a reader will see: text keys, and lists for tuples.
    if folder is not None:
        content["files"] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
        }
    return {**content, "digest": digest_of(content)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record carries a digest, or a part of a seal."""
    return "digest" in record or "files" in record


def broken(record: Mapping[str, Any]) -> bool:
    """Whether the content of a sealed record is not what was written; False for a record without a seal."""
    return is_sealed(record) and record.get("digest") != digest_of(record)


def files_faults(record: Mapping[str, Any], folder: Path, *, deep: bool) -> Iterator[str]:
    """Yield what is wrong with every damaged file that an intact sealed record names.

    Args:
        record: The record.
        folder: Where its files are.
        deep: Read every file. Otherwise large ones are compared by size alone; JSON files are always read.
    """
    for name, about in record.get("files", {}).items():
        path = folder / name
        if path_part_fault(name):
            yield f"it names a file outside its folder, {name!r}"
            continue
        try:
            same = path.stat().st_size == about["bytes"]
            if same and (deep or path.suffix == ".json"):
                same = sha256_of(path) == about["sha256"]
        except OSError as error:
            yield f"{name} cannot be read ({error.strerror or error})"
            continue
        if not same:
            yield f"{name} is not the file that was written with the result"


def digest_file(path: Path) -> Path:
    """Returns the file beside a checkpoint that holds its hash."""
    return path.with_name(path.name + ".sha256")


def matches(path: Path, sha256: str | None = None) -> bool:
    """Whether a file exists and matches a hash: the one given, or that of the file beside it."""
    try:
        # The file of the hash may hold anything.
        expected = digest_file(path).read_bytes().strip() if sha256 is None else sha256.encode()
        return expected == sha256_of(path).encode()
    except OSError:
        return False
