"""`Hub`: texts, or pairs of texts, of a data set of the Hugging Face Hub or of a folder that `datasets` saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.data.hub import HubSet
from mtlbench.errors import DataError, SuiteError
from mtlbench.seeding import seed_of

from .text import Text
from .texts.saved import read_saved

PARTS: Mapping[str, Any] = {"train": "train", "val": 0.1, "test": "test"}
MOST = 0.1
"""Largest share of the training texts that a number of texts takes away."""


class Hub(Text):
    """Texts of one data set of the Hub. ``mtlbench data SUITE --download`` stores it in the data folder.

    Runs read the stored copy and need no network. Its content enters their identity.

    Args:
        root: Data folder.
        name: Data set of the Hub, ``owner/name``.
        config: Its configuration; ``""`` if it has only one.
        revision: Branch, tag or commit.
        file: In place of ``name``: a folder within ``root`` that ``save_to_disk`` of `datasets` wrote.
        parts: Where train, val and test come from. Each is the name of a split; val and test may also be taken from
            the split of train, as a share below 1 or as a number of texts, which is at most a tenth. Texts, or pairs
            with the same first text, are in one part.
        **options: ``text``, ``second``, ``targets``, ``tokenizer``, ``vocabulary``, ``length`` and ``buckets``; see
            `data_modules.text.Text`. Training rows without a text are left out.
    """

    VERSION: ClassVar[int] = 1
    TERMS: ClassVar[str] = "Data sets of the Hugging Face Hub have licences of their own; read the page of each."

    def __init__(
        self,
        root: str | None = None,
        *,
        name: str = "",
        config: str = "",
        revision: str = "main",
        file: str = "",
        parts: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        if "split" in options:
            raise SuiteError("Splits of a data set of the Hub are named in `parts`. Found split. Remove it.")
        if bool(name) == bool(file):
            raise SuiteError(f"A data set has a name on the Hub, or a file. Found {name!r} and {file!r}. Give one.")
        super().__init__(root, file=file, split={"column": "part"}, **options)
        self.set = None if file else HubSet(name, config, f"{name}: {self.TERMS}", revision)
        self.parts = _checked({**PARTS, **(parts or {})})

    @property
    def path(self) -> Path:
        """The folder that `datasets` saved."""
        return self.set.path(self.root) if self.set else super().path

    def downloads(self) -> list[Any]:
        """Returns the data set."""
        return [self.set] if self.set else []

    def missing(self) -> list[str]:
        """Returns a line if the folder is absent; else one if the tokenizer's files, which may be fetched, are."""
        return self._tokenizer_faults() if self.path.is_dir() else [self._absence()]

    def content(self) -> str:
        """Returns a hash of texts, labels and parts."""
        return self._content

    @cached_property
    def _content(self) -> str:
        digest = hashlib.blake2b(digest_size=10)
        for column in self._frame.columns:
            digest.update(f"{column}\x1e".encode())
            digest.update("\x1f".join(map(str, self._frame[column])).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def frame(self, path: Path | None = None) -> Any:
        """Returns the rows of all parts, or those of another file."""
        import pandas as pd

        if path is not None:
            return super().frame(path)
        if not self.path.is_dir():
            raise DataError(self._absence())
        wanted = list(dict.fromkeys(where for where in self.parts.values() if isinstance(where, str)))
        found = read_saved(self.path, wanted, [name for name in self.required() if name != "part"])
        frames = [found[self.parts["train"]].assign(part=self._drawn(found[self.parts["train"]]))]
        for part in ("val", "test"):
            if isinstance(self.parts[part], str):
                frames.append(found[self.parts[part]].assign(part=part))
        frame = pd.concat(frames, ignore_index=True)
        return frame[~self._blank(frame)].reset_index(drop=True)

    def doubts(self, split: str) -> list[str]:
        """Returns a line about rows that were left out, and the lines of `Text.doubts`."""
        count = self._left_out if split == "train" else 0
        found = f"{count} training rows have no text and are left out."
        return [*([found] if count else []), *super().doubts(split)]

    @cached_property
    def _left_out(self) -> int:
        names = [name for name in (self.text, self.second) if name]
        rows = read_saved(self.path, [self.parts["train"]], names)[self.parts["train"]]
        return int(self._blank(rows.assign(part="train")).sum())

    def _blank(self, frame: Any) -> Any:
        empty = [frame[name].fillna("").astype(str).str.strip() == "" for name in (self.text, self.second) if name]
        return (frame["part"] == "train") & (empty[0] | empty[-1])

    def _drawn(self, frame: Any) -> list[str]:
        """Returns the part of every row of the training split, by its first text alone."""
        bounds, below = {}, 0.0
        for part in ("val", "test"):
            where = self.parts[part]
            if not isinstance(where, str):
                below += where if where < 1 else min(MOST, where / max(1, len(frame)))
                bounds[part] = below
        places = (seed_of("hub split", str(text)) / 2**63 for text in frame[self.text])
        return [next((part for part, bound in bounds.items() if place < bound), "train") for place in places]

    def _absence(self) -> str:
        what, remedy = "A data set", "Correct data.options.file."
        if self.set:
            what = self.set.name
            remedy = f"Fetch it: mtlbench data SUITE --download --agree. {self.set.by_hand(self.root)}"
        return f"{what} is a folder that the library datasets saved. There is no {self.path}. {remedy}"


def _checked(parts: Mapping[str, Any]) -> dict[str, Any]:
    shares = [where for part, where in parts.items() if not isinstance(where, str)]
    fit = all(isinstance(share, int | float) and not isinstance(share, bool) and share > 0 for share in shares)
    whole = fit and all(share < 1 or isinstance(share, int) for share in shares)
    if set(parts) != set(PARTS) or not isinstance(parts.get("train"), str) or not whole:
        raise SuiteError(
            "data.options.parts says where train, val and test come from: the name of a split each, or for val and "
            f"test a share of train below 1 or a whole number of its texts. Found {dict(parts)}."
        )
    if sum(share if share < 1 else MOST for share in shares) >= 1:
        raise SuiteError(f"val and test leave texts for training. Found shares {shares}. Lower them.")
    return dict(parts)
