"""Tokens of many texts in two arrays, which are written once and then read through memory maps."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..dense.cache import folder_of_caches
from .tokenizers import Encoded, Tokenizer

VERSION = 1


@dataclass(frozen=True)
class Tokens:
    """The tokens of N texts.

    Attributes:
        numbers: All tokens, one text after the other, int32.
        ends: (N,) int64, where each text ends in ``numbers``.
        first: (N,) int32, tokens of the first text of a pair.
        cut: (N,) bool, whether the end of a text is missing.
    """

    numbers: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    cut: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, (N,)."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.numbers[self.ends[index - 1] if index else 0 : self.ends[index]]

    @classmethod
    def of(cls, found: Sequence[Encoded]) -> Tokens:
        """Joins encoded texts."""
        return cls(
            np.concatenate([one.tokens for one in found]) if found else np.empty(0, dtype=np.int32),
            np.cumsum([len(one.tokens) for one in found], dtype=np.int64),
            np.array([one.first for one in found], dtype=np.int32),
            np.array([one.cut for one in found], dtype=bool),
        )


def tokenised(tokenizer: Tokenizer, texts: Sequence[str], seconds: Sequence[str] | None, length: int) -> Tokens:
    """Returns the tokens of texts, from the cache if they were tokenised before.

    The cache is keyed by the texts, the tokenizer and the length. It lies where decoded images lie
    (``MTLBENCH_CACHE``), and is written beside its place and renamed, so that several writers cannot harm each other.

    Args:
        tokenizer: The tokenizer.
        texts: Texts.
        seconds: The second text of each pair; None for single texts.
        length: Most tokens of a text.
    """
    place = folder_of_caches()
    make = lambda: Tokens.of(tokenizer.encode(texts, seconds, length))  # noqa: E731
    if place is None:
        return make()
    key = hashlib.blake2b(f"{VERSION} {tokenizer.identity()} {length} {seconds is None}".encode(), digest_size=10)
    for text in (*texts, *(seconds or ())):
        raw = text.encode("utf-8", "surrogatepass")
        key.update(len(raw).to_bytes(8, "big") + raw)
    return _cached(place / f"text-tokens-{key.hexdigest()}", make)


def _cached(folder: Path, make: Callable[[], Tokens]) -> Tokens:
    try:
        found = _read(folder)
    except (OSError, ValueError):
        made = make()
    else:
        with contextlib.suppress(OSError):
            os.utime(folder)  # Caches that nobody uses are removed after a while.
        return found
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name in Tokens.__dataclass_fields__:
            np.save(draft / f"{name}.npy", getattr(made, name))
        if folder.exists():  # It is damaged, or another process has just written it.
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
        return _read(folder)
    except (
        OSError,
        ValueError,
    ):  # A disk without room or without right to write: the tokens are the same, only slower.
        return made
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _read(folder: Path) -> Tokens:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in Tokens.__dataclass_fields__}
    found = Tokens(**arrays)
    whole = len(found.ends) == len(found.first) == len(found.cut)
    if not whole or (len(found.ends) and found.ends[-1] != len(found.numbers)):
        raise ValueError(f"arrays of {folder} do not belong together")
    return found
