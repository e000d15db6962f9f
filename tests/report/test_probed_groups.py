"""How well affinities of ordinary rows rank groups of tasks, from records written by hand, and the script's table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from mtlbench.report.tables.grouping import probed
from mtlbench.report.tables.records import columns_of
from tests.report.test_report_grouping import MEASURED, RIGHT, TASKS, TOGETHER, Fake

ROOT = Path(__file__).parents[2]
AFFINITY = [[9.0, 0.5, 0.1], [0.3, 9.0, -0.4], [0.2, -0.6, 9.0]]
"""Recipients in rows: semseg and depth help each other, depth and saliency do not."""


@pytest.fixture
def fake() -> Fake:
    """A study of two seeds whose groups are trained, with a row of a method that trained all tasks together."""
    study = Fake([0, 1])
    for seed in (0, 1):
        study.row("oracle", seed, [list(study.subsets(seed).values())], {})
        study.tag(seed, RIGHT)
        run = study.train("it_mtl", seed, TOGETHER[tuple(TASKS)], 60)
        study.row("it_mtl", seed, [[run]], dict.fromkeys(TASKS, run))
    return study


def found(fake: Fake, affinity: Any) -> dict[str, Any]:
    summaries = {run: {"affinity": affinity} for run in fake.results if run.startswith("it_mtl")}
    return probed(fake.study, columns_of(fake.study), fake.results, summaries)


def test_a_group_is_predicted_by_the_mean_of_its_pairs(fake: Fake) -> None:
    rows = found(fake, AFFINITY)
    assert list(rows) == ["it_mtl"] and [each.seed for each in rows["it_mtl"]] == [0, 1]
    # By hand: means over the pairs of every group, as recipients.
    predicted = [(0.5 + 0.3) / 2, (0.1 + 0.2) / 2, (-0.4 - 0.6) / 2, (0.5 + 0.1 + 0.3 - 0.4 + 0.2 - 0.6) / 2 / 3]
    for each in rows["it_mtl"]:
        assert [q.predicted for q in each.qualities] == pytest.approx(predicted)
        assert [q.measured for q in each.qualities] == pytest.approx(list(MEASURED.values()))
        assert each.correlation == pytest.approx(stats.spearmanr(predicted, list(MEASURED.values())).statistic)


@pytest.mark.parametrize("affinity", [None, "much", [[0.0] * 3] * 2, [[0.0] * 2] * 3, [["0"] * 3] * 3])
def test_what_is_no_table_of_the_tasks_predicts_nothing(fake: Fake, affinity: Any) -> None:
    assert found(fake, affinity) == {}


def test_groups_with_a_pair_that_was_not_measured_are_left_out(fake: Fake) -> None:
    """As for `hydalearn` with one main task, which fills one row."""
    (one, _) = found(fake, [AFFINITY[0], [None] * 3, [None] * 3])["it_mtl"]
    assert one.qualities == () and one.correlation is None
    (one, _) = found(fake, [*AFFINITY[:2], [0.2, None, 9.0]])["it_mtl"]
    assert [q.group for q in one.qualities] == [("semseg", "depth"), ("semseg", "saliency")]


def test_the_script_prints_a_line_per_row(fake: Fake, tmp_path: Path) -> None:
    folder = fake.write(tmp_path)
    for run in fake.results:
        if run.startswith("it_mtl"):
            (folder / run / "summary.json").write_text(json.dumps({"affinity": AFFINITY}))
    command = [sys.executable, "-m", "benchmarks.group_quality", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "| `tag` | +1.00 | [+1.00, +1.00] | 0: +1.00, 1: +1.00 | 4 |",
        "| `it_mtl` | +1.00 | [+1.00, +1.00] | 0: +1.00, 1: +1.00 | 4 |",
    ]
