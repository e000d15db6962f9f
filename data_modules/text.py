"""`Text`: texts, or pairs of texts, of one file, with its columns as tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import Sample, Samples
from mtlbench.errors import DataError, MtlbenchError, SuiteError
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import TOKENS

from .tabular.rows import Rows
from .tabular.targets import COLUMNS, Target, read_targets
from .texts.files import lines_of, read_frame
from .texts.marks import Marks, joined, kinds_of_marks
from .texts.store import Tokens, tokenised
from .texts.tokenizers import Tokenizer, tokenizer_of


class Text(Rows):
    """Texts of one file. An empty cell of a target is a missing label; that text trains the other tasks only.

    Texts are tokenised once and cached. In training, a batch holds texts of similar length.

    Args:
        root: Folder of the file, or the file.
        file: Name of the file within ``root``: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``, in UTF-8.
        text: Column of the text.
        second: Column of the second text of a pair; ``""`` for single texts.
        targets: Task -> ``kind`` (``classification``, ``regression``, ``count``, ``multi_label``) and further keys; see
            `data_modules.table.Table`. Also ``token_labels`` with ``column``, ``classes`` and ``outside``, and ``span``
            with ``column`` and ``start``; see `data_modules.texts.marks`.
        split: ``{column: name}`` of a column that holds train, val or test; or ``{val: share, test: share, seed: n}``.
        tokenizer: ``words`` (hashed words), ``minilm``, a folder with ``tokenizer.json``, or ``owner/name`` of the
            Hugging Face Hub. It must be that of the encoder, if the encoder is pretrained.
        vocabulary: Number of token ids of the tokenizer ``words``.
        length: Most tokens of a text; the end of a longer one is cut off.
        buckets: Whether a training batch holds texts of similar length, so that less of it is padding.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[str] = TOKENS

    def __init__(
        self,
        root: str | None = None,
        *,
        file: str = "",
        text: str = "text",
        second: str = "",
        targets: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        tokenizer: str = "words",
        vocabulary: int = 8192,
        length: int = 128,
        buckets: bool = True,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        if not 8 <= length <= 2**16:
            raise SuiteError(f"data.options.length, the most tokens of a text, is from 8 to 65536. Found {length}.")
        self.text, self.second, self.length, self.buckets = text, second, length, buckets
        super().__init__(root, file=file, targets=targets, split=split, tasks=tasks, **common)
        self.tokenizer: Tokenizer = tokenizer_of(tokenizer, vocabulary)

    def describing(self, targets: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options that describe the targets."""
        return {"targets": targets, "length": self.length, "second": self.second}

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets that options describe, which may point at tokens."""
        marks = kinds_of_marks(options.get("length", 128), pairs=bool(options.get("second")))
        return read_targets(options.get("targets"), {**COLUMNS, **marks})

    def required(self) -> list[str]:
        """Returns the columns that the file must have."""
        return [self.text, *([self.second] if self.second else []), *super().required()]

    def missing(self) -> list[str]:
        """Returns a line if there is no file, and one if the tokenizer's files are absent."""
        return [*super().missing(), *self._tokenizer_faults()]

    def fingerprint(self) -> str:
        """Returns a hash of the content of the file and of the tokenizer."""
        return hashlib.blake2b(f"{self.content()} {self.tokenizer.identity()}".encode(), digest_size=8).hexdigest()

    def content(self) -> str:
        """Returns a hash of the texts and labels. Default: of the file."""
        return super().fingerprint()

    def frame(self, path: Path | None = None) -> Any:
        """Returns a file as a data frame; by default the data file.

        Raises:
            DataError: It cannot be read as its ending says, or is not in UTF-8.
        """
        return read_frame(path or self.path)

    def input_sizes(self) -> dict[str, int]:
        """Returns the size of the vocabulary and the maximum length of a text."""
        return {"vocabulary": self.tokenizer.vocabulary, "length": self.length}

    def samples(self, split: str) -> Samples:
        """Returns the texts of a split; those of evaluation splits are sorted by length.

        Raises:
            DataError: A text is empty, or all training labels of a classification are the same.
        """
        rows = self._rows[split]
        if split == "train":
            self._check_classes(rows)
        else:  # Scores do not depend on the order, and batches of similar texts need less padding.
            rows = rows[np.argsort(self._tokens.lengths[rows], kind="stable")]
        labels = {name: self._labels[name] for name in self.tasks}
        return TextRows(split, rows, self._tokens, labels, pairs=bool(self.second), buckets=self.buckets)

    @cached_property
    def _labels(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {}
        for name in self.tasks:
            target = self.targets[name]
            if isinstance(target, Marks):
                about = self._texts(self._frame, self.path)[target.second]
                values, known = target.encode_tokens(self._frame, about or (), self._tokens)
            else:
                values, known = target.encode(self._frame)
            found[name] = values, torch.from_numpy(known)
        return found

    def read(self, path: Path) -> Samples:
        """Returns the texts of another file: its lines if it ends in ``.txt``, else its columns of the same names."""
        if path.suffix == ".txt":
            if self.second:
                raise DataError(
                    f"A file of lines holds one text per line. {path}: this network reads pairs of texts. Give a table "
                    f"with the columns {self.text} and {self.second}."
                )
            texts, seconds = lines_of(path), None
        else:
            frame = self.frame(path)
            self._check_known(frame, [self.text, *([self.second] if self.second else [])], path)
            texts, seconds = self._texts(frame, path)
        tokens = tokenised(self.tokenizer, texts, seconds, self.length)
        marks = {name: target for name, target in self.targets.items() if isinstance(target, Marks)}
        return NewTexts(path.stem, tokens, texts, seconds, marks)

    def doubts(self, split: str) -> list[str]:
        """Returns a line about truncated texts, and the lines of `Rows.doubts`."""
        rows = self._rows[split]
        cut = int(self._tokens.cut[rows].sum())
        found = []
        if cut:
            found.append(
                f"{cut} of {len(rows)} texts have more than {self.length} tokens, and their ends are cut off. Raise "
                "data.options.length if the encoder takes longer texts."
            )
        for name in self.tasks:
            target = self.targets[name]
            if isinstance(target, Marks):
                about = self._texts(self._frame, self.path)[target.second] or ()
                found += target.doubts(self._labels[name][0][rows], self._frame, about, rows)
        return [*found, *super().doubts(split)]

    def _tokenizer_faults(self) -> list[str]:
        try:
            self.tokenizer.identity()
            _ = self.tokenizer.vocabulary
        except MtlbenchError as error:
            return [str(error)]
        return []

    @cached_property
    def _tokens(self) -> Tokens:
        texts, seconds = self._texts(self._frame, self.path)
        return tokenised(self.tokenizer, texts, seconds, self.length)

    def _texts(self, frame: Any, path: Path) -> tuple[list[str], list[str] | None]:
        columns = [self._column(frame, name, path) for name in (self.text, self.second) if name]
        return columns[0], columns[1] if self.second else None

    @staticmethod
    def _column(frame: Any, name: str, path: Path) -> list[str]:
        empty = frame[name].isna().to_numpy()
        where = "{}: row {} below the header, column {},"
        texts = [
            "" if gone else joined(cell, where.format(path, row, name))
            for row, (cell, gone) in enumerate(zip(frame[name], empty, strict=True), 1)
        ]
        blank = [index for index, text in enumerate(texts) if not text.strip()]
        if blank:
            rows = ", ".join(str(index + 1) for index in blank[:3])
            raise DataError(
                f"Every row needs a text. {path}: {len(blank)} of {len(texts)} rows have none in the column {name}, "
                f"the first in row {rows} below the header. Remove these rows."
            )
        return texts

    def _check_classes(self, rows: np.ndarray) -> None:
        for name, task in self.tasks.items():
            if task.kind != "classification":
                continue
            values, known = self._labels[name]
            found = values[rows][known[rows]].unique()
            if len(found) == 1:
                target = self.targets[name]
                raise DataError(
                    f"A classification needs training labels of two classes or more. {name}: all "
                    f"{int(known[rows].sum())} training labels are {target.classes[int(found)]!r}. Leave the task out, "
                    "or correct the column or the split."
                )


class TextRows:
    """Texts as samples.

    Attributes:
        lengths: Tokens of every sample, if batches shall hold texts of similar length; else None.
    """

    def __init__(
        self, split: str, rows: np.ndarray, tokens: Tokens, labels: Mapping[str, Any], *, pairs: bool, buckets: bool
    ):
        self.split, self.rows, self.tokens, self.labels, self.pairs = split, rows, tokens, labels, pairs
        self.lengths = tokens.lengths[rows] if buckets else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        tokens = torch.from_numpy(self.tokens[row].astype(np.int64))
        inputs = {"tokens": tokens}
        if self.pairs:
            inputs["segments"] = (torch.arange(len(tokens)) >= int(self.tokens.first[row])).long()
        targets = {name: values[row] for name, (values, known) in self.labels.items() if known[row]}
        # Classes of words are kept in 16 bits.
        targets = {name: one.long() if one.dtype == torch.int16 else one for name, one in targets.items()}
        return {"inputs": inputs, "targets": targets, "id": f"{self.split}-{row}"}


class NewTexts(TextRows):
    """Texts without labels, which can tell what predictions mean."""

    def __init__(
        self, name: str, tokens: Tokens, texts: list[str], seconds: list[str] | None, marks: Mapping[str, Marks]
    ):
        super().__init__(name, np.arange(len(texts)), tokens, {}, pairs=seconds is not None, buckets=False)
        self.texts, self.seconds, self.marks = texts, seconds, marks

    def tell(self, task: str, index: int, value: np.ndarray) -> str | None:
        """Returns a decoded prediction that points at tokens in words; None for other tasks."""
        if task not in self.marks:
            return None
        mark = self.marks[task]
        text = (self.seconds if mark.second and self.seconds else self.texts)[index]
        return mark.tell(value, text, mark.spans_of(self.tokens, index))
