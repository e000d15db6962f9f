"""Suites of the user's own stand beside the shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench import suite as suites
from mtlbench.errors import SuiteError


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments"
    folder.mkdir()
    return folder


def test_own_suites_hide_no_shipped_one(own: Path) -> None:
    before = set(suites.available())
    (own / "mine.yaml").write_text("title: My own\n")
    assert set(suites.available()) == before | {"mine"} and {"digits", "scenes"} <= before
    assert suites.available()["mine"] == "My own"
    assert suites.locate("mine") == Path("experiments/mine.yaml")
    assert suites.locate("scenes").is_absolute()


def test_an_own_suite_of_a_shipped_name_wins_and_is_marked(own: Path) -> None:
    (own / "digits.yaml").write_text("title: My digits\n")
    assert suites.locate("digits") == Path("experiments/digits.yaml")
    assert suites.available()["digits"] == "My digits (experiments/digits.yaml replaces the shipped suite of this name)"


def test_a_broken_file_is_listed_and_ends_nothing(own: Path) -> None:
    (own / "torn.yaml").write_text("a: [\n")
    (own / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert suites.available()["torn"] == suites.available()["binary"] == ""


def test_an_unknown_suite_names_both_places(own: Path) -> None:
    with pytest.raises(SuiteError, match=r"Did you mean 'digits'.*Looked in experiments/ and /.*experiments/\."):
        suites.locate("digit")
