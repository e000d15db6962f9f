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
from mtlbench.report import build, load, published
from mtlbench.report.views.files import latex, markdown, tidy_csv
from mtlbench.report.views.terminal import show_board
from tests.support.command_line import mtlbench

SUITES = ("pascal", "nyud")
COLUMNS = {
    "semseg": [("semseg_miou@1", True, "")],
    "normals": [("normals_mean@1", False, "deg"), ("normals_median@1", False, "deg")],
    "saliency": [("saliency_miou@1", True, ""), ("saliency_maxf@1", True, "")],
}


SPECS = {
    "pascal": {
        "data": {"module": "data_modules.pascal:Pascal", "options": {"size": 512, "protocol": "invpt"}},
        "model": {"image_size": [512, 512]},
    },
    "nyud": {
        "data": {"module": "data_modules.nyud:Nyud", "options": {"size": [480, 640], "protocol": "vandenhende"}},
        "model": {"image_size": [480, 640]},
    },
}
IMAGES = {"pascal": {"train": 4998, "val": 5105}, "nyud": {"train": 795, "val": 654}}


def board(suite, columns=None, spec=None, **result):
    """Returns a leaderboard with one run that reports every column and by default used the published data."""
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
    ours = {"run_id": "r", "split": "val", "images": IMAGES.get(suite), "scores": scores, "cost": cost}
    specs = {"r": SPECS.get(suite, {}) if spec is None else spec}
    return build(study, {"r": ours | result}, specs=specs)


def test_rows_are_as_printed():
    pascal = {(row.method, row.backbone, row.source): row.values for row in published.load("pascal").rows}
    mod_squad = pascal["Mod-Squad", "MoE ViT-S", "leaderboard page, second hand"]
    assert mod_squad["semseg", "semseg_miou@1"] == Decimal("0.741")
    assert mod_squad["normals", "normals_mean@1"] == Decimal("13.7")
    assert str(pascal["InvPT", "", "InvPT paper"]["edges", "edge_odsf_pascal@1"]) == "0.7300"
    nyud = {(row.method, row.source): row.values for row in published.load("nyud").rows}
    assert nyud["MLoRE", "MLoRE repository"]["depth", "depth_rmse@1"] == Decimal("0.5076")
    assert published.load("digits").rows == ()


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
        for row in published.load(suite).rows:
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
    assert "TaskPrompter" in below and "TaskPrompter" not in head and [row.label for row in table.rows] == ["ours"]
    assert "TaskPrompter" not in tidy_csv(table) + latex(table)
    console = Console(width=150, record=True, file=io.StringIO())
    show_board(table, console)
    assert "TaskPrompter" in console.export_text()


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("recipe,method,backbone,source,semseg semseg_miou@1 %", "r,a,b,c,much"),
        ("recipe,method,backbone,source,semseg_miou@1", "r,a,b,c,1"),
        ("recipe,method,backbone,semseg semseg_miou@1 %", "r,a,b,1"),
        ("recipe,method,backbone,source,semseg semseg_miou@1 %", "r,a,b,c,1,2"),
        ("recipe,method,backbone,source,semseg semseg_miou@1 %", "other,a,b,c,1"),
    ],
)
def test_a_faulty_file_is_named(head, line, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(published, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "mine.csv").write_text(f"# a comment\n#! r {{}}\n{head}\n{line}\n")
    with pytest.raises(StoreError, match="mine.csv"):
        published.load("mine")


def test_rows_show_only_under_the_published_data_size_split_and_recipe():
    matching = board("pascal")
    assert {row.recipe for row in matching.published} == {"invpt"} and published.published_grid(matching)
    assert any("other recipes are left out: vandenhende" in note for note in matching.notes)
    assert {row.recipe for row in board("nyud").published} == {"vandenhende"}

    data, model = SPECS["pascal"]["data"], SPECS["pascal"]["model"]
    small = {"data": data, "model": {"image_size": [96, 96]}}
    other = {"data": data | {"options": {"protocol": "mine"}}, "model": model}
    flipped = {"data": data | {"options": {"protocol": "invpt", "normals_axes": "right-up"}}, "model": model}
    module = {"data": data | {"module": "mine:Pascal"}, "model": model}
    cut = {"data": data | {"labels": {"depth": 0.1}}, "model": model}
    different = {
        "image size 512 x 512 (found 96 x 96)": board("pascal", spec=small),
        "options protocol=": board("pascal", spec=other),
        "normals_axes=right-up": board("pascal", spec=flipped),
        "found mine:Pascal": board("pascal", spec=module),
        "removed labels none (found depth=0.1)": board("pascal", spec=cut),
        "split val (found test)": comparable_with(split="test"),
        "images per split train=4998, val=5105 (found train=8, val=4)": board("pascal", images={"train": 8, "val": 4}),
        "(found no record)": board("pascal", images=None),
    }
    for reason, table in different.items():
        rows, notes = (table.published, table.notes) if not isinstance(table, tuple) else (table[0], [table[1]])
        assert rows == () and any(n.startswith("Published results are left out") and reason in n for n in notes), reason


def comparable_with(**result):
    return published.comparable("pascal", [(SPECS["pascal"], {"split": "val", "images": IMAGES["pascal"]} | result)])


def test_one_run_on_other_data_is_enough_to_leave_rows_out():
    ours = (SPECS["pascal"], {"split": "val", "images": IMAGES["pascal"]})
    assert published.comparable("pascal", [ours, ours])[0]
    assert not published.comparable("pascal", [ours, (SPECS["pascal"], ours[1] | {"images": {"train": 8}})])[0]
    assert published.comparable("pascal", []) == ((), "")


@pytest.mark.parametrize("suite", SUITES)
def test_files_are_rectangular(suite):
    lines = [x for x in Path(published.__file__).with_name(f"{suite}.csv").read_text().splitlines() if x[0] != "#"]
    assert {len(cells) for cells in csv.reader(lines)} == {len(next(csv.reader(lines)))}


def test_a_short_run_on_a_miniature_shows_none(tmp_path: Path):
    small = ["data.options.size=[32,48]", "model.image_size=[32,48]", "model.decoder_channels=8", "trainer.steps=5"]
    model = ["model.encoder=vit_tiny_patch16_224", "model.encoder_options={embed_dim: 16, depth: 1, num_heads: 2}"]
    trainer = ["trainer.batch_size=4", "trainer.workers=0", "trainer.evaluate_every=5", "methods=[uniform]"]
    answer = mtlbench(tmp_path, "bench", "nyud", *small, *model, *trainer, "--sample")
    assert answer.code == 0, answer.text
    table = load(tmp_path / "results/nyud")[1]
    assert table.rows[0].cells and table.published == ()
    (note,) = [note for note in table.notes if note.startswith("Published results are left out")]
    assert (
        "image size 480 x 640 (found 32 x 48)" in note and "images per split train=795, val=654 (found train=" in note
    )
    assert published.HEADING not in markdown(table)
