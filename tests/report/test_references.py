"""Every paper that a shipped method names has an entry, and a study's BibTeX holds those of its methods."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mtlbench import registry
from mtlbench.report import load, references
from tests.support.fake_study import write_study

WITHOUT = {
    "dense_conditioned", "dense_wide", "floor", "oracle_grouping", "random_grouping", "single_task"
}  # fmt: skip
"""Methods that are from no paper: controls and bounds."""


def test_every_paper_of_a_method_has_an_entry_and_every_entry_a_method() -> None:
    named = {paper for name in registry.shipped() for paper in references.papers(name)}
    assert named == references.entries().keys()
    assert {name for name in registry.shipped() if not references.papers(name)} == WITHOUT


def test_entries_are_whole_and_have_keys_of_their_own() -> None:
    texts = dict(references.entries().values())
    assert len(texts) == len(references.entries()) > 40
    for key, text in texts.items():
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", text, re.MULTILINE))
        assert {"author", "title", "year"} <= fields.keys(), key
        assert text.count("{") == text.count("}") and text.isascii()
        surname = re.sub(r"\W", "", fields["author"].split(",")[0]).lower()
        assert re.match(rf"{surname.split('-')[0][:4]}\w*{fields['year']}\w+", key), key


def test_the_key_of_a_method_is_its_paper() -> None:
    assert references.papers("pcgrad") == ("2001.06782",)
    assert references.papers("mmoe") == ("10.1145/3219819.3220007",)
    assert references.papers("imtl") == ("https://openreview.net/forum?id=IMPnRXEWpvr",)
    assert references.papers("moe") == ("2101.03961", "2106.05974"), "two papers, two forms of a link"
    assert references.papers("my_method") == ()


def test_a_study_cites_each_paper_once_with_balancers(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "scenes", ["single_task", "gradvac", "gradvac_layer", "mod_squad_pcgrad"])
    study = load(folder)[0]
    assert references.references_of(study)["mod_squad_pcgrad"] == [], "the label of a row is no method"
    text = references.bibtex(study)
    assert text.count("@inproceedings{wang2021gradient,") == 1 == text.count("@")
    assert "% gradvac_layer: wang2021gradient\n" in text and "% single_task: no paper\n" in text


def test_a_balancer_is_cited_beside_the_method_that_it_balances(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = load(write_study(tmp_path / "scenes", ["single_task"]))[0]
    spec = {"method": {"name": "mod_squad", "balancer": {"name": "pcgrad"}}}
    monkeypatch.setattr(references, "read_specs", lambda study: {"a": spec})
    assert references.references_of(study) == {
        "single_task": [], "mod_squad": ["chen2023mod"], "pcgrad": ["yu2020gradient"]
    }  # fmt: skip


def test_a_name_of_others_cannot_begin_an_entry(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    record = json.loads((folder / "study.json").read_text())
    for entry in record["rows"]:
        entry["method"] = "@misc{evil,\n@x" if entry["label"] == "uniform" else entry["method"]
    (folder / "study.json").write_text(json.dumps(record))
    text = references.bibtex(load(folder)[0])
    assert "@" not in text and "% misc{evil, x: a method of your own; add its paper here\n" in text
