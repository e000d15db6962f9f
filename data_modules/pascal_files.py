"""Where PASCAL-Context in its multi-task layout lies on disk, what of it is absent, and what identifies it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from mtlbench.errors import DataError

FOLDERS = ("", "PASCAL_MT", "PASCALContext")
"""The archive's own folder under its two names, or nothing when the root is that folder itself."""

SOURCES = {
    "image": (("JPEGImages", ".jpg"),),
    "semseg": (("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")),
    "context": (("pascal-context/trainval", ".mat"),),
    "parts": (("human_parts", ".mat"),),
    "saliency": (("sal_distill", ".png"),),
    "normals": (("normals_distill", ".png"),),
}
"""Kind of file -> (folder, ending), the first that has the file wins."""

NEEDS = {
    "semseg": ("semseg",),
    "parts": ("parts",),
    "saliency": ("saliency",),
    "normals": ("normals", "context"),
    "edges": ("context",),
}
"""Task -> kinds of file. A task that is not requested needs none of its files."""

REMEDY = (
    "Unpack PASCAL_MT.tgz (data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz; trouble was reported in 2023) or "
    "PASCALContext.tar.gz (OneDrive folder linked in the InvPT and MLoRE READMEs; the copy at "
    "data.vision.ee.ethz.ch/brdavid/atrc/ is gone) and give the folder that holds it as the root. The photographs are "
    "under the VOC and Flickr terms, the archive states no licence, so mtlbench cannot ship it. "
    "SAMPLE=1 renders a miniature instead."
)


class PascalFiles:
    """The files of one copy of the data set.

    Args:
        root: The folder with ``JPEGImages`` and ``ImageSets``, or the one that contains it.

    Attributes:
        folder: The folder with ``JPEGImages``, None if it was not found.
    """

    def __init__(self, root: str | None):
        self.root = root
        candidates = [Path(root).expanduser() / name for name in FOLDERS] if root else []
        known = (c for c in candidates if (c / "JPEGImages").is_dir() or (c / "ImageSets").is_dir())
        self.folder: Path | None = next(known, None)

    def ids(self, split: str) -> list[str]:
        """Returns the image ids of a split in the order of its list, which is the same for every task.

        Raises:
            DataError: The list is absent or empty.
        """
        path = self._list(split)
        if not path.is_file():
            raise DataError(f"No image list for the split {split!r}: looked for {path}. {REMEDY}")
        ids = path.read_text().split()
        if not ids:
            raise DataError(f"An image list holds one id per line. {path} is empty. Unpack the archive again.")
        return ids

    def path(self, kind: str, image: str) -> Path:
        """Returns the file of one kind (key of `SOURCES`) for one image.

        Raises:
            DataError: There is none.
        """
        candidates = [self._base() / folder / f"{image}{ending}" for folder, ending in SOURCES[kind]]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        looked = " or ".join(str(c) for c in candidates)
        raise DataError(f"Every listed image needs its {kind} file. Looked for {looked}. {REMEDY}")

    def absent(self, task: str) -> list[str]:
        """Returns the kinds of file of a task whose folders are all absent."""
        return [kind for kind in NEEDS[task] if not self._present(kind)]

    def missing(self, tasks: Iterable[str], splits: Iterable[str]) -> list[str]:
        """Returns what these tasks lack, a line each, as `MTLDataModule.missing` asks."""
        if self.folder is None:
            looked = [str(Path(self.root or "<no root given>") / name) for name in FOLDERS]
            return [f"PASCAL-Context: no JPEGImages or ImageSets in {' or '.join(looked)}. {REMEDY}"]
        lines, ids = [], []
        for split in splits:
            try:
                ids += self.ids(split)
            except DataError as error:
                lines.append(str(error))
        users: dict[str, list[str]] = {"image": ["every task"]}
        for task in tasks:
            for kind in NEEDS[task]:
                users.setdefault(kind, []).append(task)
        return lines + [line for kind, names in users.items() for line in self._lacks(kind, names, ids)]

    def fingerprint(self, tasks: Iterable[str], splits: Iterable[str]) -> str:
        """Returns a hash of the ids of the splits and the names and sizes of the files of these tasks and images.

        It depends neither on where the data lies nor on dates; contents are not read, so it is quick.
        """
        digest = hashlib.blake2b(digest_size=16)
        kinds = ["image", *sorted({kind for task in tasks for kind in NEEDS[task]} - {"image"})]
        sizes = {kind: self._sizes(kind) for kind in kinds}
        for split in splits:
            for image in self.ids(split):
                digest.update(repr((split, image, [sizes[kind].get(image) for kind in kinds])).encode())
        return digest.hexdigest()

    def _base(self) -> Path:
        if self.folder is None:
            raise DataError(self.missing((), ())[0])
        return self.folder

    def _list(self, split: str) -> Path:
        return self._base() / "ImageSets" / "Context" / f"{split}.txt"

    def _present(self, kind: str) -> bool:
        return self.folder is not None and any((self.folder / folder).is_dir() for folder, _ in SOURCES[kind])

    def _lacks(self, kind: str, users: list[str], ids: list[str]) -> list[str]:
        where = " or ".join(str(self._base() / folder) for folder, _ in SOURCES[kind])
        if not self._present(kind):
            return [f"The folder for {', '.join(users)} is absent: looked for {where}. {REMEDY}"]
        lost = sorted(set(ids) - self._sizes(kind).keys())
        if not lost:
            return []
        return [
            f"{len(lost)} of {len(ids)} files for {', '.join(users)} are absent from {where}, for example "
            f"{', '.join(lost[:3])}. {REMEDY}"
        ]

    def _sizes(self, kind: str) -> dict[str, tuple[str, int]]:
        """Returns id -> (name below the folder, bytes)."""
        found: dict[str, tuple[str, int]] = {}
        for folder, ending in reversed(SOURCES[kind]):
            path = self._base() / folder
            if path.is_dir():
                with os.scandir(path) as entries:
                    names = {e.name: e.stat().st_size for e in entries if e.name.endswith(ending)}
                found |= {name[: -len(ending)]: (f"{folder}/{name}", size) for name, size in names.items()}
        return found
