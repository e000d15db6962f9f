"""The default fingerprint of a data set: which files lie under its root, how large they are, when they changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def content_of(root: Path) -> str:
    """Returns a hash of the relative names, sizes and modification times under a folder, or of one file.

    Hidden files and folders are left out, since desktops and editors write them. Dead links count by name alone.

    Returns:
        16 hexadecimal digits; ``""`` if nothing is there.
    """
    entries = _walk(root) if root.is_dir() else [root] if root.is_file() else []
    digest = hashlib.blake2b(digest_size=8)
    for path in entries:
        try:
            status = path.stat()
        except OSError:
            size, time = -1, -1
        else:
            size, time = status.st_size, status.st_mtime_ns
        name = path.relative_to(root).as_posix()
        digest.update(repr((name, size, time)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest() if entries else ""


def _walk(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(found)
