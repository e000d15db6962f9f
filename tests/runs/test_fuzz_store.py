"""Whatever stands in a results folder, commands answer with a documented exit code and never show a changed score.

Each input is one damaged file and one command. ``MTLBENCH_FUZZ=5000`` tries that many instead of 200. Every 50th page
is the real one; the others leave out its figures, which take most of the time and draw what the tables have read.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mtlbench import suite as suites
from mtlbench.cli.arguments import Request
from mtlbench.errors import UNSAFE, ExitCode
from mtlbench.report.views import html
from mtlbench.runs import liveness, seal
from mtlbench.runs.store import RunFolder, read_json, write_json
from mtlbench.study import resolve as studies
from mtlbench.training import checkpoint
from tests.support.command_line import Answer, mtlbench
from tests.support.instant import OVERRIDES, finished, resolved
from tests.support.mutations import damaged_bytes, damaged_record

INPUTS = int(os.environ.get("MTLBENCH_FUZZ", "120"))
WORDS = ("methods=[single_task, uniform, famo, pcgrad]",)
FIGURES = (
    "score_figures",
    "training_figures",
    "tuning_figures",
    "affinity_figures",
    "sharing_figures",
    "usage_figures",
)
COUNT = itertools.count(1)


@dataclass(frozen=True, repr=False)
class Folder:
    """A folder of results: finished runs, one that failed, and one that was killed.

    Attributes:
        place: The current folder of the commands.
        study: The resolved study.
        files: The files that are damaged, with their content.
        table: The rows of the leaderboard as it should be.
    """

    place: Path
    study: studies.Study
    files: dict[Path, bytes]
    table: frozenset[tuple[str, ...]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    place = tmp_path_factory.mktemp("fuzz")
    study = resolved(*WORDS)
    root = finished(place / "results", study)
    runs = {spec.label: RunFolder(root, spec.run_id) for spec in study.members}
    for label in ("famo", "pcgrad"):
        (runs[label].path / "result.json").unlink()
    runs["famo"].fail({"type": "DivergedError", "message": "The loss was not finite.", "traceback": "", "time": 1.5})
    checkpoint.save({"step": 2}, checkpoint.path_of(runs["pcgrad"].path, 2))
    lock = {"host": "elsewhere", "pid": 7, "born": "1", "beat": 4, "step": 2, "steps": 4}
    write_json(runs["pcgrad"].path / "lock.json", lock)
    write_json(runs["uniform"].path / "lock.json", {**liveness.owner(4), "born": "of a dead process"})
    with simple(study):
        assert command(place, "report").code == ExitCode.FAILED
    names = ("spec.json", "result.json", "summary.json", "metrics.jsonl", "lock.json", "error.json")
    paths = [run.path / name for run in runs.values() for name in names if (run.path / name).exists()]
    paths += [root / "study.json", root / ".reported", *(root / "studies").iterdir()]
    yield Folder(place, study, {path: path.read_bytes() for path in paths}, table(root))


@contextlib.contextmanager
def simple(study: studies.Study, *, figures: bool = False) -> Iterator[None]:
    """Replaces what takes long and reads nothing from the folder of results."""
    asked = Request(_suite(), [*OVERRIDES, *WORDS], studies.Local(), lambda key: key)
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch("mtlbench.cli.bench.read_request", lambda arguments: asked),
            mock.patch.object(studies, "resolve", lambda *_: copy.deepcopy(study)),
            mock.patch.object(studies, "key_of", lambda *_: study.record["key"]),
            mock.patch("mtlbench.bench.scheduler.check_run", lambda spec: None),
            mock.patch("os.fsync", lambda handle: None),
            mock.patch.dict(os.environ, COLUMNS="240"),  # Tables that fit are laid out once.
            *(mock.patch.object(html, name, lambda *_: {}) for name in FIGURES if not figures),
        ):
            stack.enter_context(patch)
        yield


@functools.cache
def _suite() -> suites.Suite:
    return suites.load("digits", (*OVERRIDES, *WORDS))


def command(place: Path, name: str) -> Answer:
    more = {"status": ("--verify",), "bench": (*OVERRIDES, *WORDS, "--dry")}.get(name, ())
    return mtlbench(place, name, "digits", *more)


def table(root: Path) -> frozenset[tuple[str, ...]]:
    """Returns the numbers of the leaderboard with what they are of; ranks depend on which rows are there."""
    with (root / "leaderboard.csv").open() as file:
        return frozenset(tuple(v for key, v in row.items() if key != "rank") for row in csv.DictReader(file))


def damaged(draw: Any, content: bytes, seals: str) -> bytes:
    """Returns a damaged file; its seal is kept, made anew as by a forger, or absent as in earlier versions."""
    if not content or draw(st.integers(0, 3)) == 0:
        return damaged_bytes(draw, content)
    lines = content.decode().splitlines()
    try:
        record = json.loads(content)
    except ValueError:
        at = draw(st.integers(0, len(lines) - 1))
        if lines[at].startswith("{"):
            lines[at] = json.dumps(damaged_record(draw, json.loads(lines[at])))
        return "\n".join(lines).encode()
    if seals != "kept":
        record = {key: value for key, value in record.items() if key not in ("digest", "files")}
    record = damaged_record(draw, record)
    if seals == "forged" and isinstance(record, dict):
        record = seal.sealed(record)
    return json.dumps(record).encode()


@settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_no_content_of_a_file_breaks_a_command(folder: Folder, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(folder.files)), label="file")
    seals = data.draw(st.sampled_from(("kept", "kept", "forged", "absent")), label="seal")
    content = damaged(data.draw, folder.files[path], seals)
    name = data.draw(st.sampled_from(("status", "report", "report", "bench")), label="command")
    path.write_bytes(content)
    try:
        with simple(folder.study, figures=next(COUNT) % 50 == 0):
            answer = command(folder.place, name)
        assert answer.code in (ExitCode.DONE, ExitCode.FAILED, ExitCode.REFUSED), answer
        assert not UNSAFE.search(answer.text) and "Traceback" not in answer.text, answer.text
        # Without any part of its seal a result passes for one of an earlier version, which `status` says.
        sealed = path.name != "result.json" or seal.is_sealed(read_json(path) or {"digest": ""})
        if name == "report" and answer.code != ExitCode.REFUSED and seals == "kept" and sealed:
            found = table(folder.place / "results" / "digits")
            assert found <= folder.table, f"new numbers: {found - folder.table}"
            assert answer.code == ExitCode.FAILED and (found == folder.table or path.parent.name in answer.text)
    finally:
        path.write_bytes(folder.files[path])
