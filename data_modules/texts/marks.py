"""Targets of texts that point at tokens: a label per word, and an answer that is a part of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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

    def doubts(self, values: Tensor, frame: Any, texts: Sequence[str], rows: np.ndarray) -> list[str]:
        """Returns a line for everything that looks wrong in some rows.

        Args:
            values: The targets of these rows.
            frame: The whole table.
            texts: What its targets are about.
            rows: Numbers of the rows.
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

    A cell holds the labels of all words, separated by spaces, or a list of them, in which None is a missing label. In
    pairs, the words are those of the first text.
    """

    def encode_tokens(self, frame: Any, texts: Sequence[str], tokens: Tokens) -> tuple[Tensor, np.ndarray]:
        """Returns (N, length) int16, and which rows have a label."""
        places = {name: place for place, name in enumerate(self.classes)}
        task: Any = self.task
        found = np.full((len(texts), task.length), NO_CLASS, dtype=np.int16)
        for index, (cell, text) in enumerate(zip(frame[self.columns[0]], texts, strict=True)):
            if _absent(cell):
                continue
            labels = list(cell) if _is_list(cell) else text_of(cell).split()
            words = _words(text)
            if len(labels) != len(words):
                raise DataError(
                    f"{self.task.name}: every word of {self.columns[0]} has a label. Row {index + 1} below the header: "
                    f"words {len(words)}, labels {len(labels)}. Words and labels are separated by spaces; correct the "
                    "row."
                )
            numbers = [NO_CLASS if _absent(label) else places.get(text_of(label)) for label in labels]
            if None in numbers:
                odd = text_of(labels[numbers.index(None)])
                raise DataError(
                    f"{self.task.name}: every label of {self.columns[0]} is one of its classes "
                    f"{', '.join(self.classes)}. Row {index + 1} below the header has {odd!r}. Correct it, or add it "
                    "to `classes`."
                )
            for word, token in _first_tokens(words, self.spans_of(tokens, index)).items():
                found[index, token] = numbers[word]
        return torch.from_numpy(found), (found != NO_CLASS).any(1)

    def tell(self, value: np.ndarray, text: str, spans: np.ndarray) -> str:
        """Returns the labels of the words, separated by spaces; ``–`` for a word without a token."""
        words = _words(text)
        tokens = _first_tokens(words, spans)
        return " ".join(self.classes[int(value[tokens[word]])] if word in tokens else "–" for word in range(len(words)))

    def doubts(self, values: Tensor, frame: Any, texts: Sequence[str], rows: np.ndarray) -> list[str]:
        """Returns a line if some words have labels, but none has that of some class."""
        present = set(values.unique().tolist()) - {NO_CLASS}
        absent = [name for place, name in enumerate(self.classes) if place not in present]
        return [f"{self.task.name}: no word has the label {', '.join(absent)}."] if absent and present else []


@dataclass(frozen=True)
class Answers(Marks):
    """An answer that is a part of the text. An empty cell is a missing answer, as is one that the last token cuts off.

    A cell holds the answer, or a mapping with ``text`` and ``answer_start``; of lists the first entries count. In
    pairs, it is a part of the second text.

    Attributes:
        start: Column of the character at which the answer begins; ``""`` for its first occurrence, as whole words if
            there is one.
    """

    start: str = ""

    def encode_tokens(self, frame: Any, texts: Sequence[str], tokens: Tokens) -> tuple[Tensor, np.ndarray]:
        """Returns (N, 4) int64, and which rows have an answer."""
        found = torch.full((len(texts), 4), NO_CLASS)
        for index, place in enumerate(self._places(frame, texts)):
            spans = self.spans_of(tokens, index)
            found[index, 2] = int(tokens.first[index]) if self.second else 0
            found[index, 3] = len(spans)
            inside = _tokens_within(spans, place) if place else None
            if inside:
                found[index, :2] = torch.tensor(inside)
        return found, (found[:, 0] >= 0).numpy()

    def tell(self, value: np.ndarray, text: str, spans: np.ndarray) -> str:
        """Returns the part of the text; nothing if no token of the text is in it."""
        chosen = spans[int(value[0]) : int(value[1]) + 1]
        chosen = chosen[chosen[:, 0] >= 0]
        return text[chosen[0, 0] : chosen[-1, 1]] if len(chosen) else ""

    def doubts(self, values: Tensor, frame: Any, texts: Sequence[str], rows: np.ndarray) -> list[str]:
        """Returns a line if answers are cut off."""
        places = list(self._places(frame, texts))
        given = [places[row] is not None for row in rows.tolist()]
        lost = sum(one and first < 0 for one, first in zip(given, values[:, 0].tolist(), strict=True))
        line = (
            f"{self.task.name}: {lost} of {sum(given)} answers are cut off by the last token, and are left out. Raise "
            "data.options.length if the encoder takes longer texts."
        )
        return [line] if lost else []

    def _places(self, frame: Any, texts: Sequence[str]) -> Iterator[tuple[int, int] | None]:
        """Yields where every answer begins and ends, in characters; None if there is none."""
        starts = frame[self.start] if self.start else [None] * len(texts)
        for index, (cell, start, text) in enumerate(zip(frame[self.columns[0]], starts, texts, strict=True)):
            yield self._place(cell, start, text, f"Row {index + 1} below the header")

    def _place(self, cell: Any, start: Any, text: str, row: str) -> tuple[int, int] | None:
        if isinstance(cell, Mapping):
            for key in ("text", *cell):
                if key not in ("text", "answer_start") or key not in cell:
                    raise DataError(
                        f"{self.task.name}: an answer is a text, or a mapping with text and answer_start. {row} has "
                        f"{', '.join(map(str, cell)) or 'nothing'}. Correct {self.columns[0]}."
                    )
            cell, start = _first(cell["text"]), _first(cell.get("answer_start"))
        if _is_list(cell):
            raise DataError(
                f"{self.task.name}: an answer is a text, or a mapping with text and answer_start. {row} has a list. "
                f"Correct {self.columns[0]}."
            )
        if _absent(cell) or not text_of(cell).strip():
            return None
        given = text_of(cell)
        answer = given.strip()
        space = len(given) - len(given.lstrip())
        begin = _found(answer, text) if _absent(start) else self._number(start, row) + space
        if begin < 0 or text[begin : begin + len(answer)] != answer:
            where = "in it" if _absent(start) else f"at its character {begin}"
            raise DataError(
                f"{self.task.name}: an answer is a part of its text. {row}: {answer[:40]!r} is not {where}. Correct "
                f"{self.columns[0]}{f' or {self.start}' if self.start else ''}."
            )
        return begin, begin + len(answer)

    def _number(self, start: Any, row: str) -> int:
        try:
            number = float(start)
        except (TypeError, ValueError):
            number = -1.0
        if not number.is_integer() or number < 0:
            raise DataError(
                f"{self.task.name}: an answer begins at a character, counted from 0. {row} has {start!r}. Correct it."
            )
        return int(number)


def kinds_of_marks(length: int, *, pairs: bool) -> Mapping[str, Kind]:
    """Returns the kinds of targets that texts have besides those of tables.

    Args:
        length: Most tokens of a text.
        pairs: Whether there are pairs of texts; answers are then parts of the second one.
    """

    def token_labels(name: str, given: Mapping[str, Any]) -> Target:
        classes, outside = class_texts(name, given), given.get("outside")
        if outside is not None and text_of(outside) not in classes:
            raise SuiteError(f"Target {name}: `outside` names a class. {unknown_name('class', str(outside), classes)}")
        outside = "" if outside is None else text_of(outside)
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


def joined(cell: Any, row: str) -> str:
    """Returns a text, of which a cell may also hold the list of words.

    Args:
        cell: The cell.
        row: Where it is, for errors.

    Raises:
        DataError: An item of the list is no word.
    """
    if isinstance(cell, Mapping):
        raise DataError(f"A text is a text or a list of words. {row} holds a mapping. Choose another column.")
    if not _is_list(cell):
        return text_of(cell)
    for word in cell:
        if not isinstance(word, str) or len(word.split()) != 1:
            raise DataError(
                f"A list of words holds texts without spaces. {row} holds {word!r}. Correct it, or give one text."
            )
    return " ".join(word.strip() for word in cell)


def _first_tokens(words: np.ndarray, spans: np.ndarray) -> dict[int, int]:
    """Returns the first token of every word that has one, by the number of the word."""
    tokens = np.flatnonzero(spans[:, 0] >= 0)
    word = np.searchsorted(words, spans[tokens, 0], side="right") - 1
    numbers, first = np.unique(word, return_index=True)
    return dict(zip(numbers.tolist(), tokens[first].tolist(), strict=True))


def _tokens_within(spans: np.ndarray, place: tuple[int, int]) -> tuple[int, int] | None:
    """Returns the first and the last token of a part of a text; None if its end has no token."""
    inside = np.flatnonzero((spans[:, 0] >= 0) & (spans[:, 1] > place[0]) & (spans[:, 0] < place[1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) and spans[inside[-1], 1] >= place[1] else None


def _found(answer: str, text: str) -> int:
    """Returns where an answer first occurs, as whole words if possible; -1 if nowhere."""
    whole = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
    return whole.start() if whole else text.find(answer)


def _words(text: str) -> np.ndarray:
    """Returns where the words of a text begin."""
    return np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)


def _first(value: Any) -> Any:
    """Returns the first entry of a list, None of an empty one, and anything else itself."""
    return next(iter(value), None) if _is_list(value) else value


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray)


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and np.isnan(cell))
