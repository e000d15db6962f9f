"""Targets of texts that point at tokens: a label per word, and an answer that is a part of the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.tasks import NO_CLASS, Span, TokenLabels

from ..tabular.columns import text_of
from ..tabular.targets import Kind, Target, class_texts
from .store import Tokens

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Marks(Target):
    """One task whose target points at tokens.

    Attributes:
        second: Whether it is about the second text of each pair.
    """

    second: bool = False

    def encode_tokens(self, frame: Any, texts: Sequence[str], tokens: Tokens) -> tuple[Tensor, np.ndarray]:
        """Returns the targets of all rows, and (N,) bool whether a row has any label.

        Args:
            frame: The table.
            texts: What the targets are about.
            tokens: The tokens of the texts, or of pairs that hold them.

        Raises:
            DataError: A cell does not hold what the kind needs.
        """
        raise NotImplementedError  # Only subclasses point at anything.

    def tell(self, value: np.ndarray, text: str, spans: np.ndarray) -> str:
        """Returns a decoded prediction in words.

        Args:
            value: What `Task.decode` makes of the prediction of one text.
            text: The text.
            spans: (L, 2), where its tokens begin and end; -1 for all others.
        """
        raise NotImplementedError  # Only subclasses point at anything.

    def spans_of(self, tokens: Tokens, index: int) -> np.ndarray:
        """Returns (L, 2), where the tokens of the text begin and end; -1 for special tokens and the other text's."""
        spans = np.array(tokens.spans[tokens.place(index)])
        other = np.arange(len(spans)) < tokens.first[index]
        spans[other if self.second else ~other] = -1
        return spans


class WordLabels(Marks):
    """A label per word. The first token of a word has it; words beyond the last token have none.

    A cell holds the labels of all words, separated by spaces, or a list of them, in which None is a missing label.
    """

    def encode_tokens(self, frame: Any, texts: Sequence[str], tokens: Tokens) -> tuple[Tensor, np.ndarray]:
        """Returns (N, length) int16, and which rows have a label."""
        places = {name: place for place, name in enumerate(self.classes)}
        task: Any = self.task
        found = torch.full((len(texts), task.length), NO_CLASS, dtype=torch.int16)
        for index, (cell, text) in enumerate(zip(frame[self.columns[0]], texts, strict=True)):
            if _absent(cell):
                continue
            labels = cell.split() if isinstance(cell, str) else list(cell)
            words = _words(text)
            if len(labels) != len(words):
                raise DataError(
                    f"{self.task.name}: every word has a label. Row {index + 1} below the header has {len(words)} "
                    f"words and {len(labels)} labels. Words and labels are separated by spaces; correct the row."
                )
            numbers = [NO_CLASS if _absent(label) else places.get(text_of(label)) for label in labels]
            if None in numbers:
                odd = text_of(labels[numbers.index(None)])
                raise DataError(
                    f"{self.task.name}: every label of {self.columns[0]} is one of its classes "
                    f"{', '.join(self.classes)}. Row {index + 1} below the header has {odd!r}. Add it to `classes`."
                )
            row = np.full(task.length, NO_CLASS, dtype=np.int16)
            for token, word in self._first_tokens(words, self.spans_of(tokens, index)):
                row[token] = numbers[word]
            found[index] = torch.from_numpy(row)
        return found, (found != NO_CLASS).any(1).numpy()

    def tell(self, value: np.ndarray, text: str, spans: np.ndarray) -> str:
        """Returns the labels of the words, separated by spaces; words beyond the last token have none."""
        return " ".join(self.classes[int(value[token])] for token, _ in self._first_tokens(_words(text), spans))

    @staticmethod
    def _first_tokens(words: np.ndarray, spans: np.ndarray) -> list[tuple[int, int]]:
        """Returns the first token of every word, with the number of the word."""
        tokens = np.flatnonzero(spans[:, 0] >= 0)
        word = np.searchsorted(words, spans[tokens, 0], side="right") - 1
        _, first = np.unique(word, return_index=True)
        return [(int(tokens[i]), int(word[i])) for i in first]


@dataclass(frozen=True)
class Answers(Marks):
    """An answer that is a part of the text. An empty cell is a missing answer, as is one beyond the last token.

    A cell holds the answer, or a mapping with lists ``text`` and ``answer_start``, of which the first entries count.

    Attributes:
        start: Column of the character at which the answer begins; ``""`` for its first occurrence.
    """

    start: str = ""

    def encode_tokens(self, frame: Any, texts: Sequence[str], tokens: Tokens) -> tuple[Tensor, np.ndarray]:
        """Returns (N, 3) int64, and which rows have an answer."""
        found = torch.full((len(texts), 3), NO_CLASS)
        starts = frame[self.start] if self.start else [None] * len(texts)
        for index, (cell, start, text) in enumerate(zip(frame[self.columns[0]], starts, texts, strict=True)):
            spans = self.spans_of(tokens, index)
            found[index, 2] = len(spans)
            place = self._place(cell, start, text, index)
            if place is None:
                continue
            own = spans[:, 0] >= 0
            inside = np.flatnonzero(own & (spans[:, 1] > place[0]) & (spans[:, 0] < place[1]))
            if len(inside) and spans[inside[-1], 1] >= place[1]:
                found[index, :2] = torch.tensor([inside[0], inside[-1]])
        return found, (found[:, 0] >= 0).numpy()

    def tell(self, value: np.ndarray, text: str, spans: np.ndarray) -> str:
        """Returns the part of the text; nothing if no token of the text is in it."""
        chosen = spans[int(value[0]) : int(value[1]) + 1]
        chosen = chosen[chosen[:, 0] >= 0]
        return text[chosen[0, 0] : chosen[-1, 1]] if len(chosen) else ""

    def _place(self, cell: Any, start: Any, text: str, index: int) -> tuple[int, int] | None:
        """Returns where an answer begins and ends, in characters; None if there is none."""
        if isinstance(cell, Mapping):
            answers, starts = (list(cell.get(key, ())) for key in ("text", "answer_start"))
            cell, start = (answers[0], starts[0] if starts else None) if answers else (None, None)
        if _absent(cell) or not str(cell).strip():
            return None
        answer = text_of(cell)
        begin = text.find(answer) if _absent(start) else int(start)
        if begin < 0 or text[begin : begin + len(answer)] != answer:
            where = "in it" if _absent(start) else f"at its character {begin}"
            raise DataError(
                f"{self.task.name}: an answer is a part of its text. Row {index + 1} below the header: {answer[:40]!r} "
                f"is not {where}. Correct {self.columns[0]}{f' or {self.start}' if self.start else ''}."
            )
        return begin, begin + len(answer.rstrip())


def kinds_of_marks(length: int, *, pairs: bool) -> Mapping[str, Kind]:
    """Returns the kinds of targets that texts have besides those of tables.

    Args:
        length: Most tokens of a text.
        pairs: Whether there are pairs of texts; answers are then parts of the second one.
    """

    def token_labels(name: str, given: Mapping[str, Any]) -> Target:
        classes, outside = class_texts(name, given), text_of(given.get("outside", ""))
        if outside and outside not in classes:
            raise SuiteError(f"Target {name}: " + unknown_name("class outside", outside, classes))
        task = TokenLabels(name, length=length, class_names=classes, background=outside)
        return WordLabels(task, (str(given.get("column", name)),), classes)

    def span(name: str, given: Mapping[str, Any]) -> Target:
        start = str(given.get("start", ""))
        task, column = Span(name, length=length), str(given.get("column", name))
        return Answers(task, (column, start) if start else (column,), second=pairs, start=start)

    return {
        "token_labels": Kind(("column", "classes", "outside"), token_labels),
        "span": Kind(("column", "start"), span),
    }


def joined(cell: Any) -> str:
    """Returns a text, of which a cell may also hold the list of words."""
    return text_of(cell) if isinstance(cell, str) or not isinstance(cell, Iterable) else " ".join(map(str, cell))


def _words(text: str) -> np.ndarray:
    """Returns where the words of a text begin."""
    return np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and np.isnan(cell))
