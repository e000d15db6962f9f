"""The objects of one suite in a bucket: what several machines without a common folder share. Needs no torch.

A bucket replaces whole objects and can create one exclusively, but has no locks and no renaming. So a claim is an
object ``<run_id>/claims/<n>`` that only one machine can create. Its owner writes heartbeats into it. Who takes over
from a dead owner, or follows one that has released its claim, creates ``n + 1``; the highest number counts, and is
never reused.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from mtlbench.errors import StoreError, path_part_fault, shortened

_CLAIMS = "claims"
_TRIES = 3


def is_url(results: str) -> bool:
    """Whether ``--results`` names a bucket and not a folder."""
    return "://" in results


class Bucket:
    """Objects below a URL, by name.

    Args:
        url: Where the results are, for example ``s3://bucket/results``.
        suite: Name of the suite.

    Raises:
        StoreError: If fsspec, or its package for the kind of URL, is not installed or cannot reach it.
    """

    def __init__(self, url: str, suite: str):
        self.url = f"{url.rstrip('/')}/{suite}"
        try:
            from fsspec.core import url_to_fs

            self.fs, self.base = url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(
                f"Results in a bucket need fsspec and its package for the kind of URL. {self.url}: "
                f'{shortened(str(error))}. For s3://, install "mtlbench[s3]"; or name a folder with --results.'
            ) from error

    def names(self) -> dict[str, str]:
        """Returns a stamp of every object by name; an object whose stamp is the same has not changed."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.base, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # Libraries of stores have errors of their own, for example for absent credentials.
            raise StoreError(
                f"Results must be readable. {self.url}: {shortened(str(error))}. Correct the URL or its credentials."
            ) from error
        return {
            path[len(self.base) :].lstrip("/"): f"{about.get('size')} {about.get('ETag') or about.get('created')}"
            for path, about in found.items()
        }

    def get(self, name: str) -> bytes | None:
        """Returns the content of an object, or None if there is none."""
        try:
            return bytes(self.fs.cat_file(f"{self.base}/{name}"))
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Writes an object; readers see the old or the new content."""
        self.fs.pipe_file(f"{self.base}/{name}", content)

    def remove(self, name: str) -> None:
        """Removes an object if it is there."""
        try:
            self.fs.rm_file(f"{self.base}/{name}")
        except FileNotFoundError:
            return

    def create(self, name: str, content: bytes) -> bool:
        """Create an object that must not exist yet; returns False if it does.

        Args:
            name: Its name.
            content: No other call must ever write the same, so that an answer that was lost does no harm.
        """
        last: Exception | None = None
        for _ in range(_TRIES):
            try:
                self.fs.pipe_file(f"{self.base}/{name}", content, mode="create")
                return True
            except OSError as error:
                last = error
            if (found := self.get(name)) is not None:
                return found == content
        raise StoreError(f"Results must be writable. {self.url}/{name}: {shortened(str(last))}.") from last

    def check(self) -> None:
        """Refuse a bucket in which two machines could create the same object.

        Raises:
            StoreError: If it is one, or cannot be written.
        """
        probe = f"{_CLAIMS}-probe-{uuid.uuid4().hex}"
        try:
            first, second = self.create(probe, b"1"), self.create(probe, b"2")
            kept = self.get(probe)
            self.remove(probe)
        except (OSError, TypeError, NotImplementedError) as error:
            raise StoreError(
                f"Results must be writable. {self.url}: {shortened(str(error))}. Correct the URL or its credentials."
            ) from error
        if (first, second, kept) != (True, False, b"1"):
            raise StoreError(
                f"A bucket of results must create objects exclusively, or two machines would train one run. {self.url} "
                "replaced an object instead. Use S3 or another store with conditional writes, or a shared folder."
            )


class Claim:
    """A claim of this process on one run.

    Args:
        bucket: Where.
        run_id: Which run.
        number: Its number, one above that of the claim before.
        record: The owner, as in a lock.
    """

    def __init__(self, bucket: Bucket, run_id: str, number: int, record: Mapping[str, Any]):
        self.bucket, self.run_id, self.number = bucket, run_id, number
        self.record = {**record, "token": uuid.uuid4().hex}

    @property
    def name(self) -> str:
        """Name of its object."""
        return f"{self.run_id}/{_CLAIMS}/{self.number:06d}"

    @property
    def following(self) -> str:
        """Name of the claim that takes over from it."""
        return f"{self.run_id}/{_CLAIMS}/{self.number + 1:06d}"

    def taken(self) -> bool:
        """Creates it; returns False if another machine was faster."""
        return self.bucket.create(self.name, json.dumps(self.record).encode())

    def beat(self, record: Mapping[str, Any]) -> None:
        """Writes a heartbeat."""
        self.record |= record
        self.bucket.put(self.name, json.dumps(self.record).encode())

    def release(self) -> None:
        """Lets another process claim the run at once."""
        self.beat({"released": True})


def claims_of(names: Mapping[str, str]) -> dict[str, int]:
    """Returns the number of the highest claim of every run that has one, from the names of all objects."""
    found: dict[str, int] = {}
    for name in names:
        run_id, _, rest = name.partition(f"/{_CLAIMS}/")
        if re.fullmatch(r"\d{6,9}", rest) and not path_part_fault(run_id):
            found[run_id] = max(found.get(run_id, 0), int(rest))
    return found


def files_of(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns the stamps of the files of every run by name, claims left out."""
    found: dict[str, dict[str, str]] = {}
    for name, stamp in names.items():
        run_id, _, file = name.partition("/")
        if file and not path_part_fault(run_id) and not path_part_fault(file):
            found.setdefault(run_id, {})[file] = stamp
    return found


def owner_of(bucket: Bucket, run_id: str, number: int) -> dict[str, Any] | None:
    """Returns the record of a claim's owner, or None if the claim was released or cannot be read."""
    content = bucket.get(f"{run_id}/{_CLAIMS}/{number:06d}")
    try:
        record = json.loads(content or b"")
    except ValueError:
        return None
    return record if isinstance(record, dict) and not record.get("released") else None
