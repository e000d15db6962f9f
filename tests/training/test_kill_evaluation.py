"""A run that is killed while it is evaluated resumes, and ends bit-identical to one that nobody touched."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from tests.support.command_line import SMALL, executor, outcome, run_to_end, specs, wait_for

STEPS, IMAGES = 20, 16
"""Validation after 5, 10 and 15 steps, then the final evaluation, then the pictures: 16 images each."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, RunFolder]:
    [spec] = specs(
        *SMALL,
        "data.module=tests.support.bombed_data:Bombed",
        f"trainer.steps={STEPS}",
        "trainer.evaluate_every=5",
        "trainer.checkpoint_every=4",
        "trainer.workers=0",
        "selection=best",
        "methods=[famo]",
    )
    return spec, run_to_end(tmp_path_factory.mktemp("whole"), spec)


@pytest.mark.parametrize(
    ("read", "step"),
    [
        (1, 5),  # the first image of the first validation
        (IMAGES + IMAGES // 2, 10),  # in the middle of the second
        (3 * IMAGES, 15),  # the last image of the third
        (3 * IMAGES + IMAGES // 2, STEPS),  # in the middle of the final evaluation
        (4 * IMAGES + 1, STEPS),  # while the pictures are made
    ],
)
def test_killed_while_evaluated(read: int, step: int, untouched: tuple[RunSpec, RunFolder], tmp_path: Path) -> None:
    spec, whole = untouched
    data = tmp_path / "data"
    data.mkdir()
    (data / "bomb").write_text(str(read))
    spec = replace(spec, local={**spec.local, "root": str(data)})
    runner, run = executor(tmp_path), RunFolder(tmp_path, spec.run_id)
    runner.start(spec)
    [(_, code)] = wait_for(lambda: list(runner.ended()))
    assert code == -signal.SIGKILL and run.state() == "stale" and not (data / "bomb").exists()
    last = [line for line in (run.path / "metrics.jsonl").read_text().splitlines() if '"lr"' in line][-1]
    assert f'"step": {step},' in last, "it was killed where it was meant to be"
    assert outcome(run_to_end(tmp_path, spec)) == outcome(whole)
