"""Where the files of a data set lie, which of them are absent, and what identifies them."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from mtlbench.errors import DataError

from .lists import read_list


class Files(ABC):
    """The files of one copy of a data set, read-only.

    Folders are listed once, so that an object sees the data as it was when first looked at.

    Args:
        root: The folder of the data set, or the one that contains it.

    Attributes:
        TITLE: Name of the data set, for messages.
        FOLDERS: Names of the archive's own folder; ``""`` when the root is that folder itself.
        REMEDY: Where the data set comes from, under which terms, and what to do without it.
        NEEDS: Task -> kinds of file. A task that is not requested needs none of its files.
    """

    TITLE: ClassVar[str]
    FOLDERS: ClassVar[tuple[str, ...]] = ("",)
    REMEDY: ClassVar[str]
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, root: str | None):
        self.root = root
        self._names: dict[str, frozenset[str]] = {}
        self._other: dict[str, dict[str, str]] = {}
        self._ids: dict[str, list[str]] = {}

    @cached_property
    def folder(self) -> Path | None:
        """The folder of the data set, None if there is none: the root, one in it, or the largest copy below that."""
        if not self.root or not (root := Path(self.root).expanduser()).is_dir():
            return None
        near = [root / name for name in self.FOLDERS]
        places = [place for place in sorted(root.iterdir()) if place.is_dir() and not place.name.startswith(".")]
        below = [place / name for place in places for name in self.FOLDERS[1:]]
        found = next((place for place in near if place.is_dir() and self.recognise(place)), None)
        copies = [place for place in below if place.is_dir() and self.recognise(place)]
        return found or max(copies, key=self.weigh, default=None)

    def weigh(self, folder: Path) -> int:
        """Returns how much a copy holds, to choose between several."""
        return 0

    @abstractmethod
    def recognise(self, folder: Path) -> bool:
        """Returns whether a folder is one of this set, by looking."""

    @abstractmethod
    def sought(self) -> str:
        """Returns what `recognise` looks for, for messages."""

    @abstractmethod
    def read_ids(self, split: str) -> list[str]:
        """Returns the ids of a split as they are listed.

        Raises:
            DataError: The list is absent.
        """

    @abstractmethod
    def candidates(self, kind: str, image: str) -> list[str]:
        """Returns the names, below the folder, that a file may have; the first that exists counts."""

    @abstractmethod
    def places(self, kind: str) -> list[str]:
        """Returns the folders that may hold a kind of file; if none exists, the kind is absent altogether."""

    def ids(self, split: str) -> list[str]:
        """Returns the ids of a split in the order of its list, which is the same for every task.

        Raises:
            DataError: The list is absent or empty, or names an image twice.
        """
        if split not in self._ids:
            ids = self.read_ids(split)
            if not ids:
                raise DataError(
                    f"{self.TITLE}: a split needs at least one image. {self.list_name(split)} is empty. "
                    "Unpack the archive again."
                )
            twice = _repeated(ids)
            if twice:
                raise DataError(
                    f"A list names every image once. {self.list_name(split)} repeats {', '.join(twice[:3])} "
                    f"({len(twice)} in all). Remove the repetitions."
                )
            self._ids[split] = ids
        return self._ids[split]

    def list_name(self, split: str) -> str:
        """Returns where the ids of a split come from, for messages."""
        return f"the split {split!r} in {self.folder}"

    def path(self, kind: str, image: str) -> Path:
        """Returns the file of one kind for one image.

        Raises:
            DataError: There is none.
        """
        name = self.find(kind, image)
        if name is None:
            looked = " or ".join(str(self.base() / c) for c in self.candidates(kind, image))
            raise DataError(
                f"Every listed image needs its {kind} file. Looked for {looked}.{self._near(kind, image)} {self.REMEDY}"
            )
        return self.base() / name

    def _near(self, kind: str, image: str) -> str:
        """Returns a sentence with the names most like those looked for, empty if there are none."""
        for name in self.candidates(kind, image):
            place, _, file = name.rpartition("/")
            # Another number alone is another image.
            others = [other for other in sorted(self.names(place)) if _shape(other) != _shape(file)]
            if close := difflib.get_close_matches(file, others, n=2, cutoff=0.75):
                return f" Near {file} lies {', '.join(close)}."
        return ""

    def find(self, kind: str, image: str) -> str | None:
        """Returns the name of a file below the folder, None if there is none."""
        for name in self.candidates(kind, image):
            place, _, file = name.rpartition("/")
            if file in self.names(place):
                return name
        names = self.candidates(kind, image)
        if kind == "image":  # photographs keep their content in another format; labels may not
            pictures = [name for name in names if name.endswith(PICTURES)]
            names = names + [name.rpartition(".")[0] + ending for name in pictures for ending in PICTURES]
        for name in names:
            place, _, file = name.rpartition("/")
            if other := self._spelled(place).get(_plain(file)):
                return f"{place}/{other}" if place else other
        return None

    def stems(self, place: str, ending: str) -> list[str]:
        """Returns the names in a folder that have an ending, however it is spelled, without it, in order."""
        names = (_small(name) for name in sorted(self.names(place)))
        return list(dict.fromkeys(name.removesuffix(ending) for name in names if name.endswith(ending)))

    def _spelled(self, place: str) -> dict[str, str]:
        """Returns the names in a folder by what they are with an ending in small letters, ``.jpeg`` as ``.jpg``."""
        if place not in self._other:
            self._other[place] = {_plain(name): name for name in sorted(self.names(place), reverse=True)}
        return self._other[place]

    def names(self, place: str) -> frozenset[str]:
        """Returns the names in a folder of the data set; none if it does not exist."""
        if place not in self._names:
            path = self.base() / place
            found = os.listdir(path) if path.is_dir() else []
            # Hidden files belong to systems and editors: ._x, .DS_Store, .~lock.x#.
            self._names[place] = frozenset(name for name in found if not name.startswith("."))
        return self._names[place]

    def base(self) -> Path:
        """Returns the folder.

        Raises:
            DataError: There is none.
        """
        if self.folder is None:
            raise DataError(self._nowhere())
        return self.folder

    def absent(self, task: str) -> list[str]:
        """Returns the kinds of file of a task whose folders are all absent."""
        return [kind for kind in self.NEEDS[task] if not self.present(kind)]

    def present(self, kind: str) -> bool:
        """Returns whether a folder for this kind of file exists."""
        return self.folder is not None and any((self.folder / place).is_dir() for place in self.places(kind))

    def missing(self, tasks: Iterable[str], splits: Iterable[str]) -> list[str]:
        """Returns the missing files of these tasks, one per line, for `MTLDataModule.missing`."""
        if self.folder is None:
            return [self._nowhere()]
        lines, ids = [], []
        for split in splits:
            try:
                ids += self.ids(split)
            except DataError as error:
                lines.append(str(error))
        both = [] if self.may_share_images() else _repeated(ids)
        if both:
            lines.append(
                f"No image is in two splits. {', '.join(both[:3])} ({len(both)} in all) of {self.folder} are. "
                "Take them off one list."
            )
        users: dict[str, list[str]] = {"image": ["every task"]}
        for task in tasks:
            for kind in self.NEEDS[task]:
                users.setdefault(kind, []).append(task)
        return lines + [line for kind, names in users.items() for line in self._lacks(kind, names, ids)]

    def may_share_images(self) -> bool:
        """Returns whether the official lists put the same images into several splits. Default: never."""
        return False

    def fingerprint(self, tasks: Iterable[str], splits: Iterable[str], *, dates: bool = False) -> str:
        """Returns a hash of the ids of the splits and the names and sizes of the files of these tasks and images.

        It depends neither on where the data lies nor, unless asked for, on dates; contents are not read.
        """
        digest = hashlib.blake2b(digest_size=16)
        kinds = ["image", *sorted({kind for task in tasks for kind in self.NEEDS[task]} - {"image"})]
        for split in splits:
            for image in self.ids(split):
                facts = [self.facts(kind, image, dates=dates) for kind in kinds]
                digest.update(repr((split, image, facts)).encode())
        return digest.hexdigest()

    def facts(self, kind: str, image: str, *, dates: bool) -> tuple[str, int, int] | None:
        """Returns name, bytes and, if asked for, date of a file; None if it is absent."""
        name = self.find(kind, image)
        if name is None:
            return None
        try:
            status = (self.base() / name).stat()
        except FileNotFoundError:  # a link whose file is gone
            return None
        return name, status.st_size, status.st_mtime_ns if dates else 0

    def about(self) -> list[str]:
        """Returns what else a user may want to know of the copy that was found."""
        return [f"found in {self.folder}"] if self.folder else []

    def absent_files(self, kind: str, ids: Iterable[str]) -> Iterator[str]:
        """Yields the ids without a file of this kind."""
        return (image for image in ids if self.find(kind, image) is None)

    def _nowhere(self) -> str:
        looked = " or ".join(str(Path(self.root or "<no root given>") / name) for name in self.FOLDERS)
        return f"{self.TITLE}: no {self.sought()} in {looked}. {_familiar(self.root)}{self.REMEDY}"

    def _lacks(self, kind: str, users: list[str], ids: list[str]) -> list[str]:
        where = " or ".join(str(self.base() / place) for place in self.places(kind))
        if not self.present(kind):
            return [f"The folder for {', '.join(users)} is absent: looked for {where}. {self.REMEDY}"]
        lost = sorted(self.absent_files(kind, ids))
        if not lost:
            return []
        return [
            f"{len(lost)} of {len(ids)} files for {', '.join(users)} are absent from {where}, for example "
            f"{', '.join(lost[:3])}.{self._near(kind, lost[0])} {self.REMEDY}"
        ]


LANDMARKS = {
    "JPEGImages": "PASCAL-Context (suite pascal)",
    "gt_sets": "NYUD-v2 (suite nyud)",
    "train/normal": "NYUv2 of MTAN (suite nyuv2)",
    "train/seg": "Cityscapes of auto-lambda (suite cityscapes)",
    "leftImg8bit": "Cityscapes (suite cityscapes)",
    "train/label": "Cityscapes of MTAN (suite cityscapes)",
    "rgb": "Taskonomy (suite taskonomy)",
    "nyu_depth_v2_labeled.mat": "the authors' NYU Depth V2 (`mtlbench data nyud --convert FILE` reads it)",
}
"""What lies in a folder -> the data set that it belongs to."""


def _familiar(root: str | None) -> str:
    """Returns a sentence on what a folder holds instead, empty if there is no folder."""
    folder = Path(root or "").expanduser()
    if not root or not folder.is_dir():
        return ""
    entries = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    places = [folder, *(folder / name for name in entries)]
    known = next((what for mark, what in LANDMARKS.items() for place in places if (place / mark).exists()), "")
    found = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "") if entries else "nothing"
    return f"Found {found}. " + (f"That looks like {known}. " if known else "")


PICTURES = (".jpg", ".png", ".tif", ".bmp", ".webp")
"""Endings of photographs."""

SAME = {"jpeg": "jpg", "tiff": "tif"}
"""Ending -> another spelling of it."""


def _small(name: str) -> str:
    """Returns a name with its ending in small letters and in the usual spelling."""
    stem, dot, ending = name.rpartition(".")
    small = ending.lower()
    return f"{stem}{dot}{SAME.get(small, small)}" if dot else name


def _plain(name: str) -> str:
    """Returns what equal names have in common: some systems store accents as letters of their own."""
    return unicodedata.normalize("NFC", _small(name))


def _shape(name: str) -> str:
    return re.sub(r"\d", "0", name)


def _repeated(ids: Iterable[str]) -> list[str]:
    return sorted(image for image, count in Counter(ids).items() if count > 1)


class ListedFiles(Files):
    """A data set with one list of ids per split, and one folder per kind of file.

    Attributes:
        LISTS: Folder of the lists.
        SOURCES: Kind of file -> (folder, ending), the first that has the file wins.
    """

    LISTS: ClassVar[str]
    SOURCES: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]]

    def recognise(self, folder: Path) -> bool:
        """Returns whether the folder has images or lists."""
        return any((folder / place).is_dir() for place in (*self.places("image"), self.LISTS))

    def weigh(self, folder: Path) -> int:
        """Returns the length of the lists."""
        return sum(path.stat().st_size for path in (folder / self.LISTS).glob("[!.]*.txt") if path.is_file())

    def sought(self) -> str:
        """Returns the folders of images and lists."""
        return " or ".join(dict.fromkeys((*self.places("image"), self.LISTS.partition("/")[0])))

    def read_ids(self, split: str) -> list[str]:
        """Returns the lines of the list."""
        path = Path(self.list_name(split))
        if not path.is_file():
            raise DataError(f"No image list for the split {split!r}: looked for {path}. {self.REMEDY}")
        return read_list(path)

    def list_name(self, split: str) -> str:
        """Returns the file of the list; ``Train.TXT`` counts as ``train.txt`` if there is no other."""
        name = f"{split}.txt"
        other = next((found for found in sorted(self.names(self.LISTS)) if found.lower() == name), name)
        return str(self.base() / self.LISTS / (name if name in self.names(self.LISTS) else other))

    def candidates(self, kind: str, image: str) -> list[str]:
        """Returns the image's name in every folder of the kind."""
        return [f"{place}/{image}{ending}" for place, ending in self.SOURCES[kind]]

    def places(self, kind: str) -> list[str]:
        """Returns the folders of the kind."""
        return list(dict.fromkeys(place for place, _ in self.SOURCES[kind]))
