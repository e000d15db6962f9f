"""Which task uses which expert: read over seeds, drawn, and written as a file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mtlbench.report.figures.experts import read_usage, usage_figures, usage_json
from mtlbench.report.figures.series import Series
from mtlbench.report.reader import ReportInput

TASKS = ["depth", "normals", "<parts>"]
LOADS = {
    0: {"block1.mlp": [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]},
    1: {"block1.mlp": [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]},
}


@pytest.fixture
def study(tmp_path):
    rows = []
    for seed, layers in LOADS.items():
        run = f"mod_squad-s{seed}"
        (tmp_path / run).mkdir()
        record = {name: {"load": load, "probability": load} for name, load in layers.items()}
        summary = {"experts": {"tasks": TASKS, "top_k": {"block1.mlp": 1}, "layers": record}}
        (tmp_path / run / "summary.json").write_text(json.dumps(summary))
        rows.append({"label": "mod_squad", "seed": seed, "runs": [run], "serving": dict.fromkeys(TASKS, run)})
    rows.append({"label": "uniform", "seed": 0, "runs": ["uniform-s0"], "serving": dict.fromkeys(TASKS, "uniform-s0")})
    (tmp_path / "uniform-s0").mkdir()
    (tmp_path / "uniform-s0" / "summary.json").write_text("{}")
    results = {run: {} for row in rows for run in row["runs"]}
    return ReportInput(tmp_path, {"rows": rows, "tasks": dict.fromkeys(TASKS, {})}, results, {})


def test_tables_are_the_first_seed_s_and_similarity_is_the_mean_over_seeds(study):
    (usage,) = read_usage(study).values()
    assert usage.seeds == 2 and usage.tasks == TASKS
    assert np.array_equal(usage.load["block1.mlp"], LOADS[0]["block1.mlp"])
    # Seed 0: normals and parts at 45 degrees, else apart. Seed 1: depth and normals alike, parts apart.
    half = 0.5**0.5 / 2
    np.testing.assert_allclose(usage.similarity, [[1, 0.5, 0], [0.5, 1, half], [0, half, 1]], atol=1e-12)


def test_figures_show_every_label_with_experts_and_no_markup(study):
    series = {"mod_squad": {"experts/block1.mlp/mutual_information": Series((1, 2), (0.1, 0.4), (0, 0), (1, 1), 2)}}
    series["mod_squad"] |= {
        f"experts/block1.mlp/load/{e}": Series((1, 2), (0.2, e), (0, 0), (1, 1), 2) for e in range(3)
    }
    figures = usage_figures(read_usage(study), series)
    assert len(figures) == 5 and not any("uniform" in title for title in figures)
    heat = figures["mod_squad: expert usage per task"].data[0]
    assert sorted(heat.x) == ["e0", "e1", "e2"] and heat.z.shape == (3, 3)
    assert np.array_equal(heat.z[:, list(heat.x).index("e0")], [1.0, 0.0, 0.0])
    (information,) = figures["Mutual information between tasks and experts over training"].data
    assert tuple(information.y) == (0.1, 0.4)
    assert all("<parts>" not in figure.to_json() for figure in figures.values())


def test_the_file_holds_every_table(study):
    record = json.loads(usage_json(read_usage(study)))
    assert (
        list(record) == ["mod_squad"] and record["mod_squad"]["layers"]["block1.mlp"]["load"] == LOADS[0]["block1.mlp"]
    )


def test_nothing_without_experts(study, tmp_path):
    for path in tmp_path.glob("mod_squad-*/summary.json"):
        path.unlink()
    assert read_usage(study) == {} and usage_figures({}, {}) == {}
