"""Results in Python: the frames hold the numbers of the CSV, of the JSON and of the page, to the last digit."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import mtlbench
from mtlbench import cli
from mtlbench.errors import StoreError
from mtlbench.report import formatting, write
from tests.support.fake_study import write_study
from tests.support.instant import finished, resolved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six tasks, four methods and three seeds, with a failed and an unfinished run, and its report."""
    labels = ["single_task", "famo", "pcgrad", "gradnorm"]
    made = write_study(tmp_path_factory.mktemp("frames") / "scenes", labels)
    write(made)
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> mtlbench.Results:
    return mtlbench.results(folder)


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_score_and_every_delta_m_is_that_of_the_csv(folder: Path, found: mtlbench.Results) -> None:
    told = {
        (x["label"], x["quantity"], x["protocol"], int(x["seed"])): float(x["mean"]) for x in lines(folder) if x["seed"]
    }
    frame = found.frame.astype({"task": object}).fillna({"task": "delta_m"})
    ours = {(x.label, x.task, x.protocol, x.seed): x.value for x in frame.itertuples()}
    assert ours == told and len(ours) == len(frame) > 80


def test_the_leaderboard_is_that_of_the_csv(folder: Path, found: mtlbench.Results) -> None:
    table = found.leaderboard()
    told = {(x["label"], x["quantity"], x["protocol"]): x for x in lines(folder) if not x["seed"]}
    compared = 0
    for column in found.board.primary:
        for label in table.index:
            if record := told.get((label, column.task, column.protocol)):
                assert table[f"score_{column.task}"][label] == float(record["mean"])
                assert table[f"score_{column.task}_std"][label] == float(record["std"] or "nan") or not record["std"]
                compared += 1
    for (label, quantity, _), record in told.items():
        if quantity in ("delta_m", "seconds_per_step", "parameters", "train_seconds", "peak_memory_gib"):
            assert table[quantity][label] == float(record["mean"])
            compared += 1
        if quantity.startswith("delta_m minus"):
            assert table.difference_low[label] == float(record["low"])
            assert table.difference_high[label] == float(record["high"])
            compared += 1
    assert compared > 35
    assert table.index.tolist() == [row.label for row in found.board.rows]
    assert table["rank"].dropna().is_monotonic_increasing and table["rank"].isna().any(), "gradnorm has no rank"


def test_json_holds_the_same_numbers_and_every_record(folder: Path, found: mtlbench.Results) -> None:
    record = json.loads(found.to_json())
    scores = {
        (row["label"], task, protocol, int(seed)): value
        for row in record["board"]["rows"]
        for task, protocols in row["scores"].items()
        for protocol, values in protocols.items()
        for seed, value in values.items()
    }
    frame = found.frame.dropna(subset="task")
    assert {(x.label, x.task, x.protocol, x.seed): x.value for x in frame.itertuples()} == scores
    deltas = found.frame[found.frame.metric == "delta_m"]
    told = {(r["label"], int(s)): v for r in record["board"]["rows"] for s, v in r["deltas"].items()}
    assert {(x.label, x.seed): x.value for x in deltas.itertuples()} == told
    assert set(frame.run) <= record["runs"].keys() and record["study"] == json.loads(
        (folder / "study.json").read_text()
    )
    for x in frame.itertuples():
        assert record["runs"][x.run]["result"]["scores"][x.task][x.protocol] == x.value
        assert record["runs"][x.run]["result"]["cost"]["train_seconds"] == x.train_seconds
    assert record["errors"] and "traceback" not in json.dumps(record["errors"])
    assert record["references"]["pcgrad"] == ["yu2020gradient"]


def test_the_page_shows_the_numbers_of_the_leaderboard(folder: Path, found: mtlbench.Results) -> None:
    table = found.leaderboard()
    page = (folder / "report.html").read_text()
    for html in (page[page.index("<tbody") :], found._repr_html_()):
        rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]
        for label in table.index:
            (row, *_) = [text for text in rows if re.search(rf"\s{label}\s", text)]
            shown = set(row.split())
            delta = table.delta_m[label]
            assert math.isnan(delta) or formatting.number(delta, 2, sign=True) in shown
            for column in found.board.primary:
                means = table[f"score_{column.task}"]
                assert formatting.number(means[label], formatting.decimals(means.dropna())) in shown


def test_the_frame_is_tidy(found: mtlbench.Results) -> None:
    frame = found.frame
    assert not frame.duplicated(["label", "seed", "task", "protocol"]).any()
    assert list(frame.columns[:10]) == [
        "run", "label", "method", "seed", "task", "metric", "protocol", "unit", "better", "value",
    ]  # fmt: skip
    single = frame[(frame.label == "single_task") & (frame.seed == 0) & (frame.task == "depth")]
    assert set(single.metric) == {"depth_rmse", "depth_rel"} and set(single.better) == {"lower"}
    assert set(single.run) == {"single_task-s0-depth"}
    assert frame[frame.metric == "delta_m"].run.isna().all()
    known = found.problems
    assert known.state.tolist() == ["failed", "todo"] and "NaN at step 120" in known.reason[0]
    assert repr(found) == "<Results of scenes: 4 methods, 25 finished runs, 2 without a result>"


def test_costs_per_task_are_those_of_the_task(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    path = folder / "uniform-s0-0a1b" / "result.json"
    record = json.loads(path.read_text())
    record["cost"]["flops_alone"] = {task: 10.0 + i for i, task in enumerate(record["tasks"])}
    path.write_text(json.dumps(record))
    frame = mtlbench.results(folder).frame
    ours = frame[(frame.label == "uniform") & (frame.seed == 0)].drop_duplicates("task").dropna(subset="task")
    assert ours.set_index("task").flops_alone.to_dict() == record["cost"]["flops_alone"]


def test_intervals_refer_to_another_row_by_choice(folder: Path) -> None:
    chosen = mtlbench.results(folder, against="famo").leaderboard()
    assert pd.isna(chosen.difference_low["famo"]) and not pd.isna(chosen.difference_low["single_task"])
    with pytest.raises(StoreError, match="Did you mean 'famo'"):
        mtlbench.results(folder, against="fammo")


def test_conditions_have_a_column_of_their_own(tmp_path: Path) -> None:
    scenario = ("scenario.kind=low_resource", "scenario.task=sum", "scenario.fractions=[0.5, 1.0]", "seeds=[0, 1]")
    found = mtlbench.results(finished(tmp_path, resolved(*scenario)))
    frame, table = found.frame, found.leaderboard()
    assert set(frame.condition) == set(found.board.conditions) and len(found.board.conditions) == 2
    assert not frame.duplicated(["label", "condition", "seed", "task", "protocol"]).any()
    for label in table.index:
        for condition in found.board.conditions:
            values = found.board.rows[list(table.index).index(label)].values[condition]
            assert table[condition][label] == pytest.approx(sum(values.values()) / 2)
    record = json.loads(found.to_json())
    assert found.plot_conditions().data and record["board"]["kind"] == "conditions"
    specs = [run["spec"] for run in record["runs"].values()]
    assert len(specs) == 8 and {spec["suite"] for spec in specs} == {"digits"}
    assert not any("local" in spec for spec in specs), "no local paths"
    with pytest.raises(StoreError, match="Plot these: plot_conditions"):
        found.plot_gains()


def test_a_column_without_values_holds_numbers(tmp_path: Path) -> None:
    found = mtlbench.results(write_study(tmp_path / "scenes", ["uniform", "famo"]))
    table = found.leaderboard()
    assert table.delta_m.dtype == table.difference_low.dtype == "float64" and table.delta_m.isna().all()
    assert table["rank"].isna().all() and table.seeds.tolist() == [3, 3]
    assert not (found.frame.metric == "delta_m").any(), "without single_task there is no Δm"
    with pytest.raises(StoreError, match="a finished baseline"):
        found.plot_gains()


def test_figures_are_those_of_the_page(found: mtlbench.Results) -> None:
    for name in ("gains", "cost", "losses", "scores", "cosines"):
        assert getattr(found, f"plot_{name}")().data, name
    with pytest.raises(StoreError, match="plot_gains"):
        found.plot_conditions()


def test_a_figure_without_data_says_what_it_needs(tmp_path: Path) -> None:
    found = mtlbench.results(write_study(tmp_path / "scenes", ["single_task", "uniform"]))
    with pytest.raises(StoreError, match=r"gradient cosines \(trainer.diagnose_every\)"):
        found.plot_cosines()


def test_names_are_escaped_in_a_notebook(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    record = (folder / "study.json").read_text().replace("Rendered rooms", "<script>alert(1)</script>")
    (folder / "study.json").write_text(record)
    shown = mtlbench.results(folder)._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_an_absent_study_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Run the suite first"):
        mtlbench.results(tmp_path / "digits")


def test_text_is_what_the_command_prints(folder: Path, found: mtlbench.Results, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    forms = {"latex": "to_latex", "markdown": "to_markdown", "json": "to_json", "bibtex": "to_bibtex"}
    for form, method in forms.items():
        assert cli.main(["report", "scenes", "--results", str(folder.parent), "--format", form]) == 1, "a run failed"
        printed = capsys.readouterr()
        assert printed.out == getattr(found, method)()
        assert "FAILED gradnorm-s1" in printed.err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before, "no file is written"


LIGHT = """\
import sys, mtlbench
assert callable(mtlbench.bench) and "Results" in dir(mtlbench)
assert not {"torch", "pandas", "plotly", "jinja2", "numpy"} & sys.modules.keys()
mtlbench.results(sys.argv[1]).frame
assert not {"torch", "plotly", "lightning"} & sys.modules.keys()
"""


def test_reading_results_needs_no_torch(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
