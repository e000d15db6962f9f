"""Pre-registration: the store keeps when a comparison was named, counts looks, and hides seeds set apart."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mtlbench.report import load, write
from mtlbench.runs import registration
from tests.support.fake_study import plan, result

LABELS = ["single_task", "uniform", "ours"]
PAIR = ["ours", "uniform"]


def folder_of(root: Path, seeds: list[int], done: list[int], confirm: list[int] = (), named: list[str] = PAIR) -> Path:  # type: ignore[assignment]
    """Writes a study with results at some seeds, and returns its folder."""
    study: dict[str, Any] = {
        **plan(LABELS, ["semseg"], [*seeds, *confirm]), "seeds": seeds, "named": list(named), "confirm": list(confirm),
    }  # fmt: skip
    root.mkdir(exist_ok=True)
    for entry in study["rows"]:
        (run,) = entry["runs"]
        if entry["seed"] in done:
            (root / run).mkdir(exist_ok=True)
            score = 0.4 + 0.01 * LABELS.index(entry["label"]) + 0.001 * (entry["seed"] * 7 % 5)
            scores = {"semseg": {study["tasks"]["semseg"]["protocols"][0]["id"]: score}}
            (root / run / "result.json").write_text(json.dumps(result(run, entry, scores)))
    (root / "study.json").write_text(json.dumps(study))
    return root


def record_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "study.json").read_text())


def test_a_pair_named_before_the_first_run_is_confirmatory(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1, 2], [])
    registration.register(root, record_of(root), 0)
    folder_of(root, [0, 1, 2], [0, 1, 2])
    registration.register(root, record_of(root), 9)  # The bench goes on: nothing new is named.
    first, *_ = load(root)[1].comparisons
    assert first.named and first.p_holm == pytest.approx(min(1.0, 2 * first.difference.p))


@pytest.mark.parametrize("earlier", [[], ["uniform", "single_task"], None])
def test_every_output_says_that_a_pair_was_named_after_runs_existed(tmp_path: Path, earlier: list[str] | None) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1, 2], [0, 1, 2])
    if earlier is not None:
        registration.register(root, {**record_of(root), "named": earlier}, 0)
        registration.register(root, record_of(root), 9)
    said = "no record says that it was named before its runs" if earlier is None else "named after 9 runs existed"
    board = load(root)[1]
    assert not any(c.named for c in board.comparisons)
    for path in write(root):
        if path.suffix in (".md", ".tex", ".html"):
            assert said in path.read_text(), path.name
    from rich.console import Console

    from mtlbench.report import show

    with Console(record=True, width=400, file=io.StringIO()) as console:
        show(root, console=console)
    assert said in console.export_text()


def test_naming_the_first_pair_again_does_not_undo_an_exchange(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1, 2], [0, 1, 2])
    record = record_of(root)
    registration.register(root, record, 0)
    registration.register(root, {**record, "named": ["single_task", "uniform"]}, 3)
    registration.register(root, record, 9)
    found = registration.registration_of(root, record)
    assert found is not None and found.runs == 9 and not found.confirmatory
    # Another version of the suite is another study.
    registration.register(root, {**record, "version": 2}, 0)
    again = registration.registration_of(root, {**record, "version": 2})
    assert again is not None and again.confirmatory


def test_each_report_of_new_seeds_is_one_look(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1, 2, 3], [])
    registration.register(root, record_of(root), 0)

    assert not any(c.named for c in load(root)[1].comparisons)
    found = []
    for done in ([0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]):
        folder_of(root, [0, 1, 2, 3] if len(done) == 4 else [0, 1, 2], done)
        load(root)
        found.append(len(json.loads((root / registration.FILE).read_text())["looks"]))
    assert found == [1, 1, 2, 2]
    assert any("This is look 2" in note for note in load(root)[1].notes)


def test_seeds_set_apart_are_hidden_until_all_are_done(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1], [], [5, 6, 7])
    registration.register(root, record_of(root), 0)
    folder_of(root, [0, 1], [0, 1, 5, 6], [5, 6, 7])
    study, board = load(root)
    assert {row.seeds for row in board.rows} == {(0, 1)}
    assert not any("-s5-" in run or "-s6-" in run for run in study.results)
    for path in write(root):
        text = path.read_text()
        assert "-s5-" not in text and "-s6-" not in text, path.name
    assert dict(board.rules)["Seeds set apart"] == "5, 6, 7; hidden until all are done (6 of 9 rows are)"
    folder_of(root, [0, 1], [0, 1, 5, 6, 7], [5, 6, 7])
    board = load(root)[1]
    assert {row.seeds for row in board.rows} == {(0, 1, 5, 6, 7)}
    first, *_ = board.comparisons
    assert first.named and first.difference.estimate.n == 3 and first.p_holm == first.difference.p


def test_a_damaged_or_foreign_file_is_no_registration(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "scenes", [0, 1], [0, 1])
    for text in ("{", "[]", '{"named": 3, "looks": [7, {"runs": 1}]}', '{"named": [{"pair": 5}]}'):
        (root / registration.FILE).write_text(text)
        found = registration.registration_of(root, record_of(root))
        assert found is not None and not found.confirmatory
        assert registration.look(root, ["a", "b"]) == 1
