"""The plan of the docs is run as it stands; a failed stage stops its own plan; plans that break rules are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtlbench.bench.scheduler import Member
from mtlbench.errors import MethodError
from mtlbench.runs.spec import RunSpec
from tests.support.command_line import SMALL, Answer, mtlbench

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adding.md"

DATA = """\
from pathlib import Path
from mtlbench.data_modules import digits

class Digits(digits.HeldOutDigits):
    def train_dataloader(self):
        with open(Path(__file__).with_name("trainings"), "a") as file:
            file.write("+".join(self.tasks) + "\\n")
        assert not Path(__file__).with_name("broken").exists() or list(self.tasks) != ["segments"]
        return super().train_dataloader()
"""

SUITE = """\
name: mine
version: 1
title: Three tasks
data: {module: "data_of_test:Digits"}
tasks: {left: {}, ink: {}, segments: {}}
model: {encoder: vit_tiny_patch16_224, encoder_options: {patch_size: 4}, image_size: [24, 32]}
optimiser: {name: adamw, lr: 0.002}
trainer: {steps: 4}
floor: false
methods: [uniform]
seeds: [0]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the docs' plan, and digits with a test split."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "partner.py").write_text(code)
    (tmp_path / "data_of_test.py").write_text(DATA)
    (tmp_path / "mine.yaml").write_text(SUITE)
    return tmp_path


def bench(folder: Path, methods: str, *more: str) -> Answer:
    return mtlbench(folder, "bench", "mine.yaml", "--methods", methods, "--jobs", "1", *SMALL, *more)


def row(folder: Path, label: str) -> Any:
    study = json.loads((folder / "results" / "mine" / "study.json").read_text())
    return next(r for r in study["rows"] if r["label"] == label)


def trained(folder: Path) -> list[str]:
    return (folder / "trainings").read_text().split()


def test_the_plan_of_the_docs(folder: Path) -> None:
    generator = re.findall(r"def plan\(cls, spec\):\n((?: {8}.*\n)+)", (folder / "partner.py").read_text())
    assert len(generator) == 1 and len(generator[0].splitlines()) == 10
    answer = bench(folder, "uniform partner:BestPartner")
    assert answer.code == 0, answer.text
    found = row(folder, "BestPartner")
    pairs, (rest,) = found["stages"]
    results = {
        run: json.loads((folder / "results" / "mine" / run / "result.json").read_text()) for run in found["runs"]
    }
    assert [results[run]["tasks"] for run in pairs] == [["left", t] for t in ("ink", "segments")]
    best = max(pairs, key=lambda run: next(iter(results[run]["validation"]["left"].values())))
    assert {t for t, run in found["serving"].items() if run == best} == set(results[best]["tasks"])
    assert {t for t, run in found["serving"].items() if run == rest} == set(results[rest]["tasks"])
    assert set(results[best]["tasks"]) | set(results[rest]["tasks"]) == set(found["serving"])
    status = mtlbench(folder, "status", "mine")
    lines = [line.split() for line in status.text[status.text.index("Plans by stage") :].splitlines()]
    assert lines[2:4] == [["BestPartner", "0", "1", "2", "done"], ["BestPartner", "0", "2", "1", "done"]]
    assert len(trained(folder)) == 4
    (folder / "results" / "mine" / "study.json").unlink()
    for path in (folder / "results" / "mine" / "studies").iterdir():
        path.unlink()
    assert bench(folder, "uniform partner:BestPartner").code == 0
    assert len(trained(folder)) == 4, "a replayed plan finds its runs"


def test_a_failed_stage_stops_its_plan_and_no_other(folder: Path) -> None:
    # The partner is always `ink`, so that the second stage is known beforehand.
    code = (folder / "partner.py").read_text()
    (folder / "partner.py").write_text(re.sub(r"best = .*", "best = 0", code))
    (folder / "broken").touch()
    answer = bench(folder, "partner:BestPartner uniform")
    assert answer.code == 1 and row(folder, "uniform")["serving"], answer.text
    found = row(folder, "BestPartner")
    assert [len(stage) for stage in found["stages"]] == [2, 1] and found["serving"] == {}
    status = " ".join(mtlbench(folder, "status", "mine").text.split())
    assert f"failed: the next stage depends on {found['runs'][-1]}, which failed" in status
    assert "stage 2 of the plan of BestPartner; runs that depend on it are not started" in " ".join(answer.text.split())
    (folder / "broken").unlink()
    mended = bench(folder, "partner:BestPartner uniform", "--retry")
    assert mended.code == 0, mended.text
    assert trained(folder).count("segments") == 2 and len(trained(folder)) == 5


BREAKS = """\
from mtlbench import MTLMethod

class Breaks(MTLMethod):
    @classmethod
    def plan(cls, spec):
        results = yield [spec.with_tasks("left")]
        return results[0]["nonsense"]
"""


def test_a_plan_that_breaks_off_is_a_row_with_a_reason(folder: Path) -> None:
    (folder / "breaks.py").write_text(BREAKS)
    answer = bench(folder, "breaks:Breaks")
    assert answer.code == 1 and "Traceback" not in answer.text
    table = (folder / "results" / "mine" / "leaderboard.md").read_text()
    assert "1 failed" in table and "its plan failed: KeyError in the plan: 'nonsense' (breaks.py:" in table
    status = mtlbench(folder, "status", "mine")
    assert status.code == 1 and "failed: KeyError in the plan: 'nonsense'" in " ".join(status.text.split())


WRONG = """\
from mtlbench import MTLMethod


class NoYield(MTLMethod):
    @classmethod
    def plan(cls, spec):
        return {}


class NoTask(MTLMethod):
    @classmethod
    def plan(cls, spec):
        yield [spec.with_tasks("lefd")]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [("NoYield", "A plan must be a generator"), ("NoTask", "NoTask: Unknown task 'lefd'. Did you mean 'left'")],
)
def test_a_plan_that_cannot_begin_is_refused(folder: Path, name: str, words: str) -> None:
    (folder / "wrong.py").write_text(WRONG)
    answer = bench(folder, f"wrong:{name}")
    assert answer.code == 2 and words in answer.text and "Traceback" not in answer.text


SPEC = RunSpec("digits", "mine", 0, {"name": "m"}, {"left": {}, "sum": {}}, {}, {}, {}, {"steps": 4})


@pytest.mark.parametrize(
    ("stages", "ending", "words"),
    [
        ([[]], {}, "yielded an empty list"),
        ([SPEC], {}, "a non-empty list of runs"),
        ([[SPEC, SPEC]], {}, "twice"),
        ([[SPEC.with_tasks("left")], [SPEC, SPEC.with_tasks("left")]], {}, "twice"),
        ([[replace(SPEC, suite="scenes")]], {}, "of the suite scenes"),
        ([[SPEC]], {"left": SPEC.run_id}, "which of its runs serves each task"),
        ([[SPEC]], {"left": SPEC.run_id, "sum": "a-run-of-another"}, "which of its runs serves each task"),
        ([[SPEC]], None, "which of its runs serves each task"),
    ],
)
def test_a_plan_that_breaks_the_rules_is_refused(stages: list[Any], ending: Any, words: str) -> None:
    def plan() -> Any:
        for stage in stages:  # noqa: UP028 - a list takes no results
            yield stage
        return ending

    member = Member(SPEC, plan())
    with pytest.raises(MethodError, match=words):
        for _ in range(len(stages) + 1):
            member.step([])
