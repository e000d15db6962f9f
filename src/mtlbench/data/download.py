"""Fetches archives and unpacks them: resumed where they broke off, checked, and never outside their folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from mtlbench.errors import DataError

PLACE = ".downloads"
"""Folder for incomplete files, within the data folder."""

CHUNK = 1 << 20
PAUSE = 2.0
"""Seconds before the second attempt; doubled before each further one."""

PASSING = (408, 416, 429, 500, 502, 503, 504)
"""Answers that may be others next time."""

RATIO = 200
"""Largest ratio of unpacked to packed bytes. A zip bomb reaches 1000."""

SMALL = 64 << 20
"""Bytes that an archive of any size may unpack to: a few label maps of one class compress without limit."""

Watch = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be, if known."""


@dataclass(frozen=True)
class Download:
    """One archive.

    Attributes:
        url: Public address, http or https.
        terms: Under which terms it may be used; shown before anything is fetched.
        folder: Where its content belongs, below the data folder.
        flat: Whether only the file names count, not the folders in the archive.
        size: Bytes, where known.
        checksum: ``md5:<hex>`` or ``sha256:<hex>``, where known.
        sums: Address of a list of md5 sums that names the archive, where there is one.
    """

    url: str
    terms: str
    folder: str = ""
    flat: bool = False
    size: int | None = None
    checksum: str = ""
    sums: str = ""

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rpartition("/")[2]


def obtain(wanted: Download, root: Path, watch: Watch = lambda have, total: None) -> bool:
    """Fetches an archive and unpacks it below ``root``; returns False if that was done before.

    Raises:
        DataError: It cannot be had, is not what was expected, or holds what an archive of data must not.
    """
    place = root / PLACE
    files = [place / f"{wanted.name}{ending}" for ending in ("", ".part", ".tag", ".done")]
    _refuse_links(place / wanted.name, root, files)
    place.mkdir(parents=True, exist_ok=True)
    done = place / f"{wanted.name}.done"
    if done.exists():
        return False
    checksum = wanted.checksum or (_listed_sum(wanted) if wanted.sums else "")
    archive = fetch(wanted.url, place / wanted.name, size=wanted.size, checksum=checksum, watch=watch)
    _refuse_links(archive, root, [root / wanted.folder])
    unpack(archive, root / wanted.folder, flat=wanted.flat)
    done.touch()
    archive.unlink()
    return True


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: str = "",
    attempts: int = 5,
    watch: Watch = lambda have, total: None,
) -> Path:
    """Fetches a file, going on where an earlier attempt broke off.

    Args:
        url: http or https.
        target: Where it goes; ``<target>.part`` until it is complete and checked.
        size: Bytes, where known.
        checksum: ``<algorithm>:<hex>``, where known.
        attempts: How often a broken connection is tried again.
        watch: Told about the progress.

    Returns:
        ``target``.

    Raises:
        DataError: The server refuses, keeps breaking off, or sends something else.
    """
    if target.exists():
        return target
    if not url.startswith(("http://", "https://")):
        raise DataError(f"Downloads come from http or https addresses. Found {url}.")
    part = target.with_name(f"{target.name}.part")
    for attempt in range(attempts):
        try:
            _continue(url, part, size, watch)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in PASSING:
                raise _refused(url, error) from error
            if attempt == attempts - 1:
                have = part.stat().st_size if part.exists() else 0
                raise DataError(
                    f"{url} broke off {attempts} times, the last time with {type(error).__name__}: {error}. {have} "
                    f"bytes are kept in {part}; the same command goes on from there."
                ) from error
            time.sleep(PAUSE * 2**attempt)
    _check(url, part, size, checksum)
    part.replace(target)
    part.with_suffix(".tag").unlink(missing_ok=True)
    return target


def _refused(url: str, error: urllib.error.HTTPError) -> DataError:
    return DataError(
        f"{url} must be there. The server answers {error.code} {error.reason}. The address may have moved; get the "
        "archive by hand and unpack it."
    )


def _continue(url: str, part: Path, size: int | None, watch: Watch) -> None:
    """Requests the missing part of a file and appends it; starts again if the server now has another version."""
    tag = part.with_suffix(".tag")
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    headers = {"User-Agent": "mtlbench"}
    if have and tag.exists():  # without a tag nobody knows whether it is the same file
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    try:
        answer_ = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it is here
        if error.code == 416:
            part.unlink(missing_ok=True)
        raise
    with answer_ as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if mark:
            tag.write_text(mark)
        rest = answer.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        if size is not None and total is not None and total != size:
            raise DataError(f"{url} must have {size} bytes. The server has {total}. It is another file; tell us.")
        with part.open("ab" if resumed else "wb") as file:
            while piece := answer.read(CHUNK):
                file.write(piece)
                have += len(piece)
                watch(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"{have} of {total} bytes came")


def _check(url: str, part: Path, size: int | None, checksum: str) -> None:
    """Checks a complete file; a wrong one is removed, for nothing of it can be used."""
    found = part.stat().st_size
    fault = f"has {found} bytes, expected {size}" if size is not None and found != size else ""
    if checksum and not fault:
        algorithm, _, wanted = checksum.partition(":")
        with part.open("rb") as file:
            digest = _digest(file, algorithm)
        fault = f"has the {algorithm} sum {digest}, expected {wanted}" if digest != wanted else ""
    if fault:
        part.unlink()
        part.with_suffix(".tag").unlink(missing_ok=True)
        raise DataError(f"{url} must be what was published. What came {fault}; it was removed. Try again.")


def _digest(file: IO[bytes], algorithm: str) -> str:
    sum_ = hashlib.new(algorithm)
    while piece := file.read(CHUNK):
        sum_.update(piece)
    return sum_.hexdigest()


def _listed_sum(wanted: Download) -> str:
    """Returns the md5 sum that the server's list has for an archive, ``""`` if the list does not name it."""
    with tempfile.TemporaryDirectory() as folder:
        lines = fetch(wanted.sums, Path(folder) / "sums").read_text().splitlines()
    for line in lines:
        words = line.replace("*", " ").split()
        if len(words) == 2 and words[1].rpartition("/")[2] == wanted.name:
            return f"md5:{words[0]}"
    return ""


def unpack(archive: Path, folder: Path, *, flat: bool = False) -> None:
    """Unpacks a tar or zip archive: all of it, or nothing.

    Files get the rights of new files, whatever the archive says.

    Args:
        archive: The file.
        folder: Where its content goes; files of the same name are replaced.
        flat: Take file names only.

    Raises:
        DataError: It is damaged; a member is absolute, leads out of the folder, or is a link or a device; it unpacks
            to more than `RATIO` times its size; or a link in the folder stands where a folder belongs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        try:
            room = max(SMALL, RATIO * archive.stat().st_size)
            for name, size, content in _members(archive):
                path = draft / (PurePosixPath(name).name if flat else name)
                room -= _write(archive, path, size, content, room)
        except DataError:
            raise
        except Exception as error:  # Besides their own errors: zlib.error, RuntimeError for a password, ValueError.
            raise DataError(
                f"{archive}: an archive must be complete and readable. Found {type(error).__name__}: {error}. Remove "
                "it and fetch it again."
            ) from error
        targets = {path: folder / path.relative_to(draft) for path in sorted(draft.rglob("*"))}
        _refuse_links(archive, folder, [target for path, target in targets.items() if path.is_dir()])
        for path, target in targets.items():
            if target.exists() and path.is_dir() != target.is_dir():
                raise DataError(
                    f"{archive}: a file never replaces a folder, nor a folder a file. {target} is in the way; nothing "
                    "was unpacked. Remove it, or unpack the archive by hand."
                )
        for path, target in targets.items():
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(archive: Path, path: Path, size: int, content: IO[bytes], room: int) -> int:
    """Write one member and return its bytes; ``size`` is what the archive says, ``room`` what it may be at most."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < size <= room:
        raise DataError(f"{archive} needs room. {path.name} takes {size} bytes, {free} are free. Make room and go on.")
    written = 0
    with path.open("wb") as file:
        while size <= room and written <= room and (piece := content.read(CHUNK)):
            written += file.write(piece)
    if max(size, written) > room:
        raise DataError(
            f"{archive}: an archive of data unpacks to at most {RATIO} times its size. {path.name!r} exceeds that; "
            "nothing was unpacked. Do not trust this archive."
        )
    return written


def _refuse_links(archive: Path, folder: Path, targets: Iterable[Path]) -> None:
    """Refuse to write through a link below ``folder``, which would put files outside it.

    Raises:
        DataError: If a target, or a folder between it and ``folder``, is a link.
    """
    for target in targets:
        for place in (target, *target.parents):
            if place == folder or not place.is_relative_to(folder):
                break
            if place.is_symlink():
                raise DataError(
                    f"{archive}: files go into the data folder, never through a link. {place} is a link to "
                    f"{place.readlink()}; nothing was unpacked. Remove the link, or unpack the archive by hand."
                )


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yields (name, bytes, content) of the files of an archive.

    Raises:
        DataError: At the first member that is no plain file or folder within the archive's own.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = info.external_attr >> 28  # Unix file type; 0 where another system wrote it
                _admit(archive, info.filename, plain=kind in (0, 4, 8))
                if not info.is_dir():
                    with opened.open(info) as content:
                        yield info.filename, info.file_size, content
        return
    with tarfile.open(archive, "r|*") as stream:
        for member in stream:
            _admit(archive, member.name, plain=member.isreg() or member.isdir())
            found = stream.extractfile(member) if member.isreg() else None
            if found is not None:
                yield member.name, member.size, found


def _admit(archive: Path, name: str, *, plain: bool) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts
    if outside or not plain or os.sep == "\\" and ":" in name:
        what = "leads out of it" if outside else "is a link or a device"
        raise DataError(
            f"{archive}: an archive of data holds files and folders within its own. {name!r} {what}; nothing was "
            "unpacked. Do not trust this archive."
        )
