"""Records that someone edited: whatever stands in them, a command ends with a message or leaves the value out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.errors import ExitCode
from mtlbench.runs import shapes
from mtlbench.runs.store import RunFolder
from tests.support.command_line import mtlbench
from tests.support.fake_study import write_study

RUN = "uniform-s0-0a1b"
JUNK: list[Any] = ["text", -1, 1e400, float("nan"), None, True, [], {}, ["a"], {"a": 1}, [[1]], 10**400, "[/x]"]
SPEC = {
    "hash": "0a1b", "suite": "scenes", "label": "uniform", "seed": 0, "method": {"name": "uniform"},
    "tasks": {"semseg": {}}, "data": {"module": "m", "options": {}},
    "model": {"encoder": "e", "image_size": [1, 2], "weights": None},
    "optimiser": {}, "trainer": {"steps": 3}, "local": {},
}  # fmt: skip
MORE = {
    "result.json": {"hash": "0a1b", "validation": {"semseg": {"semseg_miou@1": 0.4}}, "images": {"train": 1}},
    "summary.json": {
        "experts": {"tasks": ["semseg"], "layers": {"a": {"probability": [[0.1]], "load": [[0.1]]}}},
        "sharing": {"threshold": 0.1, "storage": {"parameters": 3}, "curves": {"scores": []}},
    },
    "spec.json": SPEC,
    "lock.json": {"host": "h", "pid": 3, "born": "1", "beat": 1, "step": 1, "steps": 3},
    "error.json": {"type": "E", "message": "m", "traceback": "t"},
}
REGISTRATION = {
    "format": 1,
    "named": [{"pair": ["uniform", "single_task"], "version": 1, "key": "k", "when": "today", "runs": 0}],
    "looks": [{"runs": [RUN], "when": "today"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = write_study(tmp_path / "results/scenes", ["single_task", "uniform"])
    study = json.loads((root / "study.json").read_text())
    (root / "study.json").write_text(json.dumps({**study, "named": ["uniform", "single_task"], "confirm": [2]}))
    for name, more in MORE.items():
        path = root / RUN / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **more}))
    return tmp_path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the places of all values, the first two of every list."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return copy


def test_no_value_of_a_record_ends_a_command_with_a_traceback(folder: Path) -> None:
    (folder / "results/scenes/registration.json").write_text(json.dumps(REGISTRATION))
    files = [folder / "results/scenes" / name for name in ("study.json", "registration.json")]
    files += [folder / "results/scenes" / RUN / name for name in MORE]
    contents = {path: path.read_text() for path in files}
    places = [(path, leaf) for path, text in contents.items() for leaf in leaves(json.loads(text))]
    draw = random.Random(0)
    for _ in range(12):
        (path, leaf), junk = draw.choice(places), draw.choice(JUNK)
        path.write_text(json.dumps(changed(json.loads(contents[path]), leaf, junk)))
        for command in ("status", "report"):
            answer = mtlbench(folder, command, "scenes")
            assert "Traceback" not in answer.text, (path.name, leaf, junk, answer.text[-2000:])
            assert answer.code in (ExitCode.DONE, ExitCode.FAILED, ExitCode.REFUSED)
        path.write_text(contents[path])


@pytest.mark.parametrize(
    "scores", ["0.4", 0, [], {"semseg": "0.4"}, {"semseg": {"semseg_miou@1": "0.4"}}, {"semseg": {"a": True}}]
)
def test_a_result_whose_scores_are_no_numbers_is_no_result(scores: Any, folder: Path) -> None:
    run = RunFolder(folder / "results/scenes", RUN)
    assert run.state() == "done"
    path = run.path / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scores": scores}))
    assert run.result() is None and run.state() != "done"
    answer = mtlbench(folder, "report", "scenes")
    assert answer.code == ExitCode.DONE and "Without a result" in answer.text, answer.text


@pytest.mark.parametrize(
    "lock", ["[]", "5", '{"host": 5}', '{"step": "x", "steps": 3}', "\x00", "[" * 9999, "{", '{"pid": -1}']
)
def test_a_damaged_lock_ends_nothing(lock: str, folder: Path) -> None:
    run = RunFolder(folder / "results/scenes", "uniform-s1-0a1b")
    (run.path / "result.json").unlink()
    (run.path / "lock.json").write_text(lock)
    assert run.state() in ("todo", "stale", "running") and isinstance(run.progress().get("step", 0), int)
    assert mtlbench(folder, "status", "scenes").code == ExitCode.DONE


def test_shapes_by_hand() -> None:
    assert shapes.number(1) and shapes.number(1.5) and not shapes.number(True) and not shapes.number(10**400)
    assert shapes.record({"a": shapes.text}, {"b": shapes.whole})({"a": "x", "c": 3})
    assert not shapes.record({"a": shapes.text})({"b": "x"})
    assert not shapes.record({}, {"b": shapes.whole})({"b": "x"})
    assert shapes.table([[1, None], [2.0, 3]]) and not shapes.table([[1], [2, 3]]) and not shapes.filled([[]])
    assert not shapes.listed(shapes.run)(["../x"]) and shapes.listed(shapes.run)(["x"])
    row = {"label": "a", "seed": 0, "runs": [], "serving": {}}
    assert shapes.ROW(row) and shapes.ROW({**row, "record": {"kind": "sharing"}})
    assert not shapes.ROW({**row, "record": 3}) and not shapes.ROW({**row, "record": {"kind": "grouping"}})
