"""``mtlbench init``: the project works as it was written, and nothing of the user's is overwritten."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.support.command_line import ended, mtlbench
from tests.support.warm import Command

TINY = ("trainer.steps=2", "trainer.evaluate_every=2", "--methods", "uniform my_method:LogSum")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    answer = mtlbench(folder, "init", "demo")
    assert answer.code == 0 and "mtlbench bench photos" in answer.text
    return folder / "demo"


def test_the_project_trains_and_is_found_by_name(project: Path) -> None:
    assert "photos" in mtlbench(project, "suites").text
    answer = mtlbench(project, "bench", "photos", *TINY)
    assert answer.code == 0, answer.text
    assert "LogSum" in answer.text and (project / "results" / "photos" / "report.html").is_file()


def test_its_own_test_passes(project: Path) -> None:
    """It runs the checks of `mtlbench check` on the data module and the method."""
    answer = ended(Command(project, ["-q", "-p", "no:cacheprovider"], {}, module="pytest"))
    assert answer.code == 0 and "2 passed" in answer.text, answer.text


def test_the_table_fits_the_images(project: Path) -> None:
    folder = project / "data" / "photos"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {path.name for path in (folder / "images").iterdir()}
    assert {row["split"] for row in rows} == {"train", "val"} and len(rows) == 144
    assert sum(row["size"] == "" for row in rows) == 8
    assert {row["shape"] for row in rows} == {"circle", "square", "triangle"}


def test_no_placeholder_is_left(project: Path) -> None:
    texts = [path.read_text() for path in project.rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    assert len(texts) >= 5 and not any("@name@" in text for text in texts)
    assert (project / "README.md").read_text().startswith("# demo\n")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    answer = mtlbench(tmp_path, "init", "mine")
    assert answer.code == 2 and "mine is not empty" in answer.text
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    answer = mtlbench(tmp_path, "init", "mine")
    assert answer.code == 2 and "must be writable" in answer.text and (tmp_path / "mine").read_text() == "keep"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert mtlbench(tmp_path, "init", "mine").code == 0
