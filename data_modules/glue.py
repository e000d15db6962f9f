"""`Glue`: eight of the nine tasks of GLUE (https://arxiv.org/abs/1804.07461), from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.errors import SuiteError, unknown_name

from .hub import Hub
from .tabular.targets import Target, read_targets

VALIDATION = 1000
"""Texts of the training split that are held out for validation, at most a tenth of them."""


@dataclass(frozen=True)
class Part:
    """One task of GLUE.

    Attributes:
        columns: Column of the text, or of both texts of a pair.
        rows: Published numbers of rows: of the training split, and of the validation split, on which it is tested.
        about: Kind of the target and its keys; ``score`` is what GLUE reports, first of several.
        test: Split that has public labels besides train.
    """

    columns: tuple[str, ...]
    rows: tuple[int, int]
    about: Mapping[str, Any]
    test: str = "validation"


def _classes(*names: str, score: str = "accuracy") -> dict[str, Any]:
    return {"kind": "classification", "classes": names, "score": score}


_PAIR = ("sentence1", "sentence2")
PARTS: Mapping[str, Part] = {
    "cola": Part(("sentence",), (8551, 1043), _classes("unacceptable", "acceptable", score="mcc")),
    "sst2": Part(("sentence",), (67349, 872), _classes("negative", "positive")),
    "mrpc": Part(_PAIR, (3668, 408), _classes("not_equivalent", "equivalent", score="f1")),
    "stsb": Part(_PAIR, (5749, 1500), {"kind": "regression", "mean": 2.7, "std": 1.5, "score": "pearson"}),
    "qqp": Part(("question1", "question2"), (363846, 40430), _classes("not_duplicate", "duplicate", score="f1")),
    "mnli": Part(
        ("premise", "hypothesis"), (392702, 9815), _classes("entailment", "neutral", "contradiction"),
        test="validation_matched",
    ),
    "qnli": Part(("question", "sentence"), (104743, 5463), _classes("entailment", "not_entailment")),
    "rte": Part(_PAIR, (2490, 277), _classes("entailment", "not_entailment")),
}  # fmt: skip
"""Tasks by configuration of the data set ``nyu-mll/glue``."""


class Glue(Hub):
    """One task of GLUE, of the same name as its configuration.

    The labels of GLUE's test splits are not public. The test split here is GLUE's validation split (of MNLI the matched
    one), and about 1000 texts of its training split are the validation split, at most a tenth. Scores therefore compare
    with published ones on the validation split (``dev``), not with those of the leaderboard.

    Scores are GLUE's: Matthews correlation (CoLA), F1 and accuracy (MRPC, QQP), Pearson's and Spearman's correlation
    (STS-B), accuracy (others); the first enters Δm. WNLI is left out: its validation split repeats training sentences
    with the opposite label, so that learning from the training split scores worse than the most frequent class.

    Args:
        root: Folder into which ``mtlbench data SUITE --download`` puts the data.
        config: A key of `PARTS`.
        tokenizer: See `data_modules.text.Text`.
        vocabulary: See there.
        length: See there.
        buckets: See there.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    TERMS: ClassVar[str] = "cite Wang et al., ICLR 2019; its data sets have licences of their own."

    def __init__(
        self,
        root: str | None = None,
        *,
        config: str = "cola",
        tokenizer: str = "words",
        vocabulary: int = 8192,
        length: int = 128,
        buckets: bool = True,
        **common: Any,
    ):
        fixed = {"name", "revision", "file", "parts", "text", "second", "targets", "split"}
        if own := sorted(fixed & set(common)):
            raise SuiteError(f"Glue has fixed columns and splits. Found {', '.join(own)}. Remove it.")
        self.config, part = config, _part(config)
        reading: dict[str, Any] = {
            "tokenizer": tokenizer, "vocabulary": vocabulary, "length": length, "buckets": buckets,
        }  # fmt: skip
        super().__init__(
            root,
            name="nyu-mll/glue",
            config=config,
            parts={"val": VALIDATION, "test": part.test},
            text=part.columns[0],
            second=part.columns[1] if len(part.columns) > 1 else "",
            **reading,
            **common,
        )

    def describing(self, targets: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the configuration, on which the task depends."""
        return {"config": self.config}

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the target of a configuration."""
        config = str(options.get("config", "cola"))
        return read_targets({config: {"column": "label", **_part(config).about}})

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Writes all configurations with a few texts."""
        from .miniatures.glue import write_glue

        return write_glue(folder)

    def doubts(self, split: str) -> list[str]:
        """Returns a line if the number of rows is not the published one, and the lines of `Hub.doubts`."""
        published = PARTS[self.config].rows
        counts = {part: len(self._rows[part]) for part in self.SPLITS}
        found = counts["train"] + counts["val"] + self._left_out, counts["test"]
        other = (
            f"{self.config} has {published[0]} texts for training and validation and {published[1]} for testing. Found "
            f"{found[0]} and {found[1]}: scores do not compare with those of others."
        )
        return [*([other] if split == "train" and found != published else []), *super().doubts(split)]


def _part(config: str) -> Part:
    if config == "wnli":
        raise SuiteError(
            "WNLI is left out: its validation split repeats training sentences with the opposite label. Remove it."
        )
    if config not in PARTS:
        raise SuiteError(unknown_name("task of GLUE", config, PARTS))
    return PARTS[config]
