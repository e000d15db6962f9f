"""Every paper that a shipped method names has an entry, and a study's BibTeX holds those of its methods."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mtlbench import registry
from mtlbench.data.mixing import RULES
from mtlbench.report import load, references
from mtlbench.study import scenarios
from tests.support.fake_study import write_study

WITHOUT = {
    "dense_conditioned", "dense_wide", "floor", "oracle_grouping", "random_grouping", "single_task"
}  # fmt: skip
"""Methods that are from no paper: controls and bounds."""


def test_every_paper_has_an_entry_and_every_entry_is_named() -> None:
    named = {paper for name in registry.shipped() for paper in references.papers(name)}
    named |= {paper for kind in scenarios.shipped() for paper in references.scenario_papers(kind)}
    named |= {paper for rule in RULES for paper in references.mixing_papers(rule)}
    assert named == references.entries().keys()
    assert {name for name in registry.shipped() if not references.papers(name)} == WITHOUT


def test_every_entry_is_well_formed_and_no_key_or_paper_occurs_twice() -> None:
    bib = Path(references.__file__).with_name("references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@(\w+)\{(\w+),\n((?:  \w+ = \{.+\},\n)+)\}$", bib, re.MULTILINE)
    assert len(found) == bib.count("@") > 40, "every entry has the form that is read"
    assert "\n\n".join(f"@{kind}{{{key},\n{body}}}" for kind, key, body in found) + "\n" == bib
    keys, places = [key for _, key, _ in found], []
    for kind, key, body in found:
        assert body.isascii() and _balanced(body), key
        names = re.findall(r"^  (\w+) = ", body, re.MULTILINE)
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", body, re.MULTILINE))
        assert len(names) == len(fields) and {"author", "title", "year"} <= fields.keys(), key
        assert {"inproceedings": "booktitle", "article": "journal", "misc": "eprint"}[kind] in fields, key
        assert ("eprint" in fields) == (fields.get("archiveprefix") == "arXiv"), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "0000.0000")), key
        assert all(name.count(",") == 1 for name in fields["author"].split(" and ")), key
        surname = re.sub(r"\W", "", fields["author"].split(",")[0]).lower()
        assert re.match(rf"{surname.split('-')[0][:4]}\w*{fields['year']}\w+", key), key
        places += [fields[name] for name in ("eprint", "doi", "url") if name in fields]
    assert keys == sorted(set(keys)), "entries are sorted, and their keys are unique"
    assert sorted(places) == sorted(references.entries()), "each entry is found by exactly one address"
    assert len(places) == len(set(places)) == len(keys)


def test_the_key_of_a_method_is_its_paper() -> None:
    assert references.papers("pcgrad") == ("2001.06782",)
    assert references.papers("mmoe") == ("10.1145/3219819.3220007",)
    assert references.papers("imtl") == ("https://openreview.net/forum?id=IMPnRXEWpvr",)
    assert references.papers("moe") == ("2101.03961", "2106.05974"), "two papers, two forms of a link"
    assert references.papers("my_method") == ()


def test_a_study_cites_the_paper_of_its_scenario(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "scenes", ["uniform"])
    study = load(folder)[0]
    plain = references.bibtex(study)
    study.plan["scenario"] = {"kind": "transfer"}
    assert "% scenario transfer: padmakumar2022exploring" in references.bibtex(study).splitlines()
    assert "padmakumar2022exploring" not in plain and "@inproceedings{padmakumar2022" in references.bibtex(study)
    study.plan["scenario"] = {"kind": "../references"}
    assert references.bibtex(study) == plain


def test_a_study_cites_the_papers_of_its_rules_of_mixing(tmp_path: Path) -> None:
    study = load(write_study(tmp_path / "scenes", ["uniform"]))[0]

    def lines(*mixing: object) -> list[str]:
        specs = {str(n): {"method": {}, "data": {"options": {"mixing": each}}} for n, each in enumerate(mixing)}
        found = references.bibtex(study, specs).splitlines()
        return [line for line in found if line.startswith("% mixing")]

    assert lines("score", {"rule": "active", "target": "t"}) == [
        "% mixing by score: lim2022multi", "% mixing by active: chen2022active"
    ]  # fmt: skip
    assert lines("uniform", {"rule": "mixing"}, None, 3, ["score"]) == []


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


def _balanced(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0 or (sign == "\n" and depth):
            return False
    return depth == 0
