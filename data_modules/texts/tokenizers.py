"""Tokenizers: texts as token ids. `Words` needs no file; `Pieces` is the tokenizer of a pretrained encoder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mtlbench.errors import SuiteError
from mtlbench.networks.text_files import PACKAGED, digest_of, folder_of

FILE = "tokenizer.json"
START, END, FIRST = 1, 2, 3
"""Token ids of `Words`: start of a text, end of a text, and the first word. Padding is 0."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Encoded:
    """One text, or a pair of texts.

    Attributes:
        tokens: (L,) int32, with special tokens.
        first: Tokens of the first text with its special tokens; L for a single text.
        cut: Whether the text was longer than allowed, and its end is missing.
        spans: (L, 2) int32, where each token begins and ends in its text, in characters; -1 for special tokens.
    """

    tokens: np.ndarray
    first: int
    cut: bool
    spans: np.ndarray


class Tokenizer(Protocol):
    """Turns texts into token ids; see `Words`."""

    @property
    def vocabulary(self) -> int: ...  # noqa: D102
    def identity(self) -> str: ...  # noqa: D102
    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None, length: int) -> list[Encoded]: ...  # noqa: D102


@dataclass(frozen=True)
class Words:
    """Lower-case words and punctuation marks, whose token ids are hashes: no vocabulary is fitted or stored.

    Two words may share a token id. With 8192 ids and 5000 different words, about half of the words share theirs.

    Attributes:
        vocabulary: Number of token ids.
    """

    vocabulary: int = 8192

    def identity(self) -> str:
        """Returns what identifies the tokenizer."""
        return f"words-1-{self.vocabulary}"

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None, length: int) -> list[Encoded]:
        """Returns texts or pairs of at most ``length`` tokens. The longer text of a pair is truncated first."""
        numbers: dict[str, int] = {}
        found = []
        for index, text in enumerate(texts):
            parts = [self._numbers(text, numbers)]
            parts += [self._numbers(seconds[index], numbers)] if seconds is not None else []
            kept = _shares([len(part) for part in parts], length - 1 - len(parts))
            whole, first = [(START, -1, -1)], 0
            for part, count in zip(parts, kept, strict=True):
                whole += [*part[:count], (END, -1, -1)]
                first = first or len(whole)
            cut = sum(kept) < sum(map(len, parts))
            table = np.array(whole, dtype=np.int32)
            found.append(Encoded(table[:, 0], first, cut, table[:, 1:]))
        return found

    def _numbers(self, text: str, known: dict[str, int]) -> list[tuple[int, int, int]]:
        """Returns the token ids of the words of a text, and where each begins and ends."""
        low, found = text.lower(), []
        # A few letters have two in lower case.
        places: Sequence[int] = range(len(text) + 1)
        if len(low) != len(text):
            places = [index for index, letter in enumerate(text) for _ in letter.lower()] + [len(text)]
        for match in _WORD.finditer(low):
            word = match.group()
            if word not in known:
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                known[word] = FIRST + int.from_bytes(digest, "big") % (self.vocabulary - FIRST)
            found.append((known[word], places[match.start()], places[match.end() - 1] + 1))
        return found


@dataclass(frozen=True)
class Pieces:
    """The tokenizer of a pretrained encoder, read by the `tokenizers` library.

    Attributes:
        name: `mtlbench.networks.text_files.PACKAGED`, a folder, or ``owner/name`` of the Hub.
    """

    name: str

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer as Read
        except ImportError as error:
            raise SuiteError(
                f"The tokenizer {self.name} needs the library tokenizers, which is not installed. Install it: "
                'pip install "mtlbench[text]", or choose the tokenizer words.'
            ) from error
        path = folder_of(self.name, FILE) / FILE
        try:
            return Read.from_file(str(path))
        except Exception as error:  # The library raises plain exceptions.
            raise SuiteError(
                f"{path} must be a tokenizer of the library tokenizers. {error}. Save it again."
            ) from error

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def identity(self) -> str:
        """Returns the hash of the file."""
        return f"pieces-{digest_of(folder_of(self.name, FILE) / FILE)}"

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None, length: int) -> list[Encoded]:
        """Returns texts or pairs of at most ``length`` tokens. The longer text of a pair is truncated first."""
        tokenizer = self._tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=length)
        given = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
        found = []
        for pair, one in zip(given, tokenizer.encode_batch(given), strict=True):
            # Special tokens belong to no sequence; those between two texts count as the first one's.
            owners = one.sequence_ids
            first = owners.index(1) if 1 in owners else len(owners)
            whole: Sequence[str] = [pair] if isinstance(pair, str) else pair
            spans = [_span(whole, owner, *place) for owner, place in zip(owners, one.offsets, strict=True)]
            tokens = np.array(one.ids, dtype=np.int32)
            found.append(Encoded(tokens, first, bool(one.overflowing), np.array(spans, dtype=np.int32).reshape(-1, 2)))
        return found


def _span(texts: Sequence[str], owner: int | None, begin: int, end: int) -> tuple[int, int]:
    """Returns where a token begins and ends in its text, without space; (-1, -1) if nothing is left of it."""
    if owner is None:
        return -1, -1
    covered = texts[owner][begin:end]  # Some tokenizers count the space before a word as a part of it.
    begin, end = begin + len(covered) - len(covered.lstrip()), end - len(covered) + len(covered.rstrip())
    return (begin, end) if begin < end else (-1, -1)


def tokenizer_of(name: str, vocabulary: int) -> Tokenizer:
    """Returns the tokenizer that a suite names.

    Args:
        name: ``words``, a key of `mtlbench.networks.text_files.PACKAGED`, a folder with ``tokenizer.json``, or
            ``owner/name`` of the Hub.
        vocabulary: Numbers of ``words``.

    Raises:
        SuiteError: The vocabulary is too small, or there is no such name.
    """
    if name == "words":
        if not 16 <= vocabulary <= 2**24:
            raise SuiteError(f"The vocabulary of words has 16 to {2**24} numbers. Found {vocabulary}.")
        return Words(vocabulary)
    if not name or (name not in PACKAGED and "/" not in name and "\\" not in name):
        raise SuiteError(
            f"A tokenizer is words, {', '.join(PACKAGED)}, the path of a folder with {FILE}, or owner/name of the "
            f"Hugging Face Hub. Found {name!r}. Correct data.options.tokenizer."
        )
    return Pieces(name)


def _shares(lengths: list[int], room: int) -> list[int]:
    """Returns how many tokens of each text are kept: the longer text is truncated first."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    short = min(range(2), key=lambda i: lengths[i])
    kept = min(lengths[short], room // 2)
    return [kept, room - kept] if short == 0 else [room - kept, kept]
