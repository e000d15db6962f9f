"""Rows of others: as printed, beneath our own, and only under protocols that agree."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from mtlbench.errors import StoreError
from mtlbench.metrics import DepthError, EdgeODSF, Joint, MaxF, MeanIoU, NormalsError, SaliencyIoU
from mtlbench.report import build, published
from mtlbench.report.views.files import latex, markdown, tidy_csv
from mtlbench.report.views.terminal import show_board

SUITES = ("pascal", "nyud")
COLUMNS = {
    "semseg": [("semseg_miou@1", True, "")],
    "normals": [("normals_mean@1", False, "deg"), ("normals_median@1", False, "deg")],
    "saliency": [("saliency_miou@1", True, ""), ("saliency_maxf@1", True, "")],
}


def board(suite, columns=None):
    """Returns a leaderboard with one run that reports every column."""
    columns = columns or COLUMNS
    tasks = {
        task: {
            "in_delta_m": True,
            "protocols": [dict(zip(("id", "higher_is_better", "unit"), p, strict=True)) for p in protocols],
        }
        for task, protocols in columns.items()
    }
    scores = {task: {p[0]: 0.5 for p in protocols} for task, protocols in columns.items()}
    row = {"label": "ours", "method": "uniform", "seed": 0, "runs": ["r"], "serving": dict.fromkeys(tasks, "r")}
    study = {
        "suite": suite, "split": "val", "selection": "last", "search": "none", "seeds": [0], "baseline": "ours",
        "tasks": tasks, "rows": [row],
    }  # fmt: skip
    cost = {"seconds_per_step": 1.0, "train_seconds": 1.0, "parameters": 1, "device": "cpu"}
    return build(study, {"r": {"run_id": "r", "split": "val", "scores": scores, "cost": cost}})


def test_rows_are_as_printed():
    pascal = {(row.method, row.backbone, row.source): row.values for row in published.load("pascal")}
    mod_squad = pascal["Mod-Squad", "MoE ViT-S", "leaderboard page, second hand"]
    assert mod_squad["semseg", "semseg_miou@1"] == Decimal("0.741")
    assert mod_squad["normals", "normals_mean@1"] == Decimal("13.7")
    assert str(pascal["InvPT", "", "InvPT paper"]["edges", "edge_odsf_pascal@1"]) == "0.7300"
    nyud = {(row.method, row.source): row.values for row in published.load("nyud")}
    assert nyud["MLoRE", "MLoRE repository"]["depth", "depth_rmse@1"] == Decimal("0.5076")
    assert published.load("digits") == ()


def test_protocols_are_ours_or_named_as_what_they_are():
    ours = Joint(
        MeanIoU(2),
        MeanIoU(2, protocol="parts_miou@1"),
        SaliencyIoU(),
        MaxF(),
        MaxF(squash=True),
        NormalsError(),
        DepthError(),
        EdgeODSF(),
        EdgeODSF(max_distance=0.011),
    )
    known = {p.id: p for p in ours.protocols}
    for suite in SUITES:
        for row in published.load(suite):
            assert row.values and row.method and row.source
            for (_, protocol), value in row.values.items():
                assert protocol in known
                assert 0 < value < 1 or known[protocol].unit == "deg"


def test_only_columns_whose_protocols_agree():
    _, parts = published.published_grid(board("pascal"))
    shown = {part.head.split(" ")[1]: part for part in parts[3:]}
    assert list(shown) == ["semseg_miou@1", "normals_mean@1", "saliency_maxf@1"]
    sources = [cell.text for cell in parts[2].cells]
    assert [s for s, cell in zip(sources, shown["saliency_maxf@1"].cells, strict=True) if cell.text != "–"] == [
        "ATRC repository"
    ]
    assert published.published_grid(board("scenes")) is None
    assert published.published_grid(board("pascal", {"semseg": [("semseg_miou@2", True, "")]})) is None
    few = published.published_grid(board("pascal", {"saliency": COLUMNS["saliency"]}))[1]
    assert [cell.text for cell in few[0].cells] == ["ATRC"]


def test_they_stand_beneath_and_are_never_ranked():
    table = board("pascal")
    text = markdown(table)
    head, _, below = text.partition(f"## {published.HEADING}")
    assert "Mod-Squad" in below and "Mod-Squad" not in head and [row.label for row in table.rows] == ["ours"]
    assert "Mod-Squad" not in tidy_csv(table) + latex(table)
    console = Console(width=150, record=True, file=io.StringIO())
    show_board(table, console)
    assert "Mod-Squad" in console.export_text()


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("method,backbone,source,semseg semseg_miou@1 %", "a,b,c,much"),
        ("method,backbone,source,semseg_miou@1", "a,b,c,1"),
        ("method,backbone,semseg semseg_miou@1 %", "a,b,1"),
        ("method,backbone,source,semseg semseg_miou@1 %", "a,b,c,1,2"),
    ],
)
def test_a_faulty_file_is_named(head, line, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(published, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "mine.csv").write_text(f"# a comment\n{head}\n{line}\n")
    with pytest.raises(StoreError, match="mine.csv"):
        published.load("mine")


@pytest.mark.parametrize("suite", SUITES)
def test_files_are_rectangular(suite):
    lines = [x for x in Path(published.__file__).with_name(f"{suite}.csv").read_text().splitlines() if x[0] != "#"]
    assert {len(cells) for cells in csv.reader(lines)} == {len(next(csv.reader(lines)))}
