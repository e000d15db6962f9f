"""Tokens of many texts in two arrays, which are written once and then read through memory maps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..dense.arrays import cached
from .tokenizers import Encoded, Tokenizer

VERSION = 3


@dataclass(frozen=True)
class Tokens:
    """The tokens of N texts.

    Attributes:
        numbers: All tokens, one text after the other, int32.
        spans: (tokens, 2) int32, where each begins and ends in its text, in characters; -1 for special tokens.
        ends: (N,) int64, where each text ends in ``numbers``.
        first: (N,) int32, tokens of the first text of a pair.
        cut: (N,) bool, whether the end of a text is missing.
    """

    numbers: np.ndarray
    spans: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    cut: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, (N,)."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.numbers[self.place(index)]

    def place(self, index: int) -> slice:
        """Returns where the tokens of a text lie in ``numbers`` and ``spans``."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    def whole(self) -> bool:
        """Returns whether the arrays belong together."""
        even = len(self.ends) == len(self.first) == len(self.cut) and self.spans.shape == (len(self.numbers), 2)
        return bool(even and (not len(self.ends) or self.ends[-1] == len(self.numbers)))

    @classmethod
    def of(cls, found: Sequence[Encoded]) -> Tokens:
        """Joins encoded texts."""
        return cls(
            np.concatenate([one.tokens for one in found]) if found else np.empty(0, dtype=np.int32),
            np.concatenate([one.spans for one in found]) if found else np.empty((0, 2), dtype=np.int32),
            np.cumsum([len(one.tokens) for one in found], dtype=np.int64),
            np.array([one.first for one in found], dtype=np.int32),
            np.array([one.cut for one in found], dtype=bool),
        )


def tokenised(tokenizer: Tokenizer, texts: Sequence[str], seconds: Sequence[str] | None, length: int) -> Tokens:
    """Returns the tokens of texts, from the cache if they were tokenised before.

    The cache is keyed by the texts, the tokenizer and the length; see `data_modules.dense.arrays`.

    Args:
        tokenizer: The tokenizer.
        texts: Texts.
        seconds: The second text of each pair; None for single texts.
        length: Most tokens of a text.
    """
    make = lambda: Tokens.of(tokenizer.encode(texts, seconds, length))  # noqa: E731
    key = hashlib.blake2b(f"{VERSION} {tokenizer.identity()} {length} {seconds is None}".encode(), digest_size=10)
    for text in (*texts, *(seconds or ())):
        raw = text.encode("utf-8", "surrogatepass")
        key.update(len(raw).to_bytes(8, "big") + raw)
    return cached(f"text-tokens-{key.hexdigest()}", Tokens, make)
