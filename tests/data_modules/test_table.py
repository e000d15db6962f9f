"""Tables: cells as numbers and labels, splits, identity, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_modules.table import Table
from data_modules.table_sets import Diabetes
from mtlbench.errors import DataError, MtlbenchError, SuiteError
from mtlbench.testing import check_data_module

TARGETS = {
    "price": {"kind": "regression", "mean": 10.0, "std": 5.0, "unit": "EUR"},
    "kind": {"kind": "classification", "column": "type", "classes": ["red", "white"]},
    "visits": {"kind": "count"},
    "tags": {"kind": "multi_label", "columns": ["sweet", "old"]},
}
ROWS = {
    "part": ["train"] * 4 + ["val", "test"],
    "size": [1.0, 3.0, np.nan, 5.0, 9.0, np.nan],
    "land": ["FR", "IT", "FR", None, "ES", "IT"],
    "price": [8.0, np.nan, 12.0, 11.0, 9.0, 10.0],
    "type": ["red", "white", None, "red", "white", "red"],
    "visits": [0, 2, 5, np.nan, 1, 1],
    "sweet": [1, 0, np.nan, 0, 1, 0],
    "old": [0, 1, np.nan, np.nan, 1, 0],
}


def table(folder: Path, rows: dict[str, Any] | None = None, **options: Any) -> Table:
    frame = pd.DataFrame(rows or ROWS)
    frame.to_csv(folder / "rows.csv", index=False)
    return Table(str(folder), **{"file": "rows.csv", "targets": TARGETS, "split": {"column": "part"}, **options})


def test_cells_become_numbers(tmp_path: Path) -> None:
    data = table(tmp_path)
    found = torch.stack([data.samples("train")[i]["inputs"] for i in range(4)])
    std = np.sqrt(8 / 3)  # Of 1, 3 and 5, whose mean is 3.
    wanted = [[-2 / std, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0], [2 / std, 0, 0, 0]]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float32))
    assert data.input_sizes() == {"features": 4}
    # A land that no training row has, and the training rows' mean for a size that is missing.
    assert data.samples("val")[0]["inputs"][2:].tolist() == [0, 0]
    assert data.samples("test")[0]["inputs"].tolist() == [0, 1, 0, 1]


def test_empty_cells_are_missing_labels(tmp_path: Path) -> None:
    data = table(tmp_path)
    found = [data.samples("train")[i]["targets"] for i in range(4)]
    assert [sorted(targets) for targets in found] == [
        ["kind", "price", "tags", "visits"], ["kind", "tags", "visits"], ["price", "visits"], ["kind", "price", "tags"]
    ]  # fmt: skip
    assert found[0]["price"] == 8 and found[1]["kind"] == 1 and found[2]["visits"] == 5
    assert found[3]["tags"][0] == 0 and found[3]["tags"][1].isnan()
    only = table(tmp_path, tasks={"kind": data.TASKS or data.tasks["kind"]})
    assert set(only.samples("train")[0]["targets"]) == {"kind"}


def test_every_row_is_in_one_split(tmp_path: Path) -> None:
    rows = {"a": np.arange(100.0), "visits": np.arange(100)}
    options = {"targets": {"visits": {"kind": "count"}}}
    parts = {}
    for seed in (0, 1):
        data = table(tmp_path, rows, split={"val": 0.2, "test": 0.1, "seed": seed}, **options)
        each = {split: data.samples(split) for split in data.SPLITS}
        parts[seed] = {n: [int(s[i]["targets"]["visits"]) for i in range(len(s))] for n, s in each.items()}
        assert sorted(sum(parts[seed].values(), [])) == list(range(100))
        assert [len(parts[seed][split]) for split in ("val", "test", "train")] == [20, 10, 70]
    assert parts[0]["val"] != parts[1]["val"]


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    first = table(tmp_path).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    assert table(tmp_path / "elsewhere").fingerprint() == first
    assert table(tmp_path, {**ROWS, "size": [1.0, 3.0, np.nan, 5.0, 9.0, 2.0]}).fingerprint() != first


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    data = table(tmp_path)
    pd.read_csv(tmp_path / "rows.csv").to_parquet(tmp_path / "rows.parquet")
    other = Table(str(tmp_path / "rows.parquet"), targets=TARGETS, split={"column": "part"})
    assert torch.equal(data.samples("train")[1]["inputs"], other.samples("train")[1]["inputs"])


def test_other_rows_are_encoded_as_the_training_rows(tmp_path: Path) -> None:
    data = table(tmp_path)
    pd.DataFrame({"land": ["IT"], "size": [3.0]}).to_csv(tmp_path / "new.csv", index=False)
    assert data.read(tmp_path / "new.csv")[0]["inputs"].tolist() == [0, 0, 0, 1]
    pd.DataFrame({"sise": [3.0], "land": ["IT"]}).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match="new.csv: Unknown column 'size'.*sise"):
        data.read(tmp_path / "new.csv")


def test_labels_far_from_what_the_task_states_are_named(tmp_path: Path) -> None:
    assert table(tmp_path).doubts("train") == []
    (doubt,) = table(tmp_path, targets={"price": {"kind": "regression"}}, ignore=[]).doubts("train")
    assert "mean 10.33 and deviation 2.082. Write these as `mean` and `std`" in doubt


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"size": [np.nan] * 4 + [1.0, 2.0]}, {}, "needs values. size has none in the training rows.*`ignore`"),
        ({"size": [1.0, np.inf, 1, 1, 1, 1]}, {}, "finite. size holds infinity"),
        ({"type": ["red", "rosé", "red", "red", "red", "red"]}, {}, "kind: .*red, white, or empty. Found rosé"),
        ({"price": ["8 EUR", 1, 1, 1, 1, 1]}, {}, "price: the column price holds numbers.*8 EUR"),
        (
            {"visits": [0.5, 1, 1, 1, 1, 1]},
            {},
            "visits: counts are whole numbers.*Found 0.5.*column visits",
        ),
        ({"sweet": [2, 0, 1, 0, 1, 0]}, {}, "tags: labels are 0 or 1.*Found 2"),
        ({"part": ["train"] * 5 + ["dev"]}, {}, "train, val or test for every row. Found 'dev'"),
        ({}, {"features": ["sizes"]}, "Unknown column 'sizes'.*size"),
        ({}, {"features": ["size", "price"]}, "one use. price is a feature and used otherwise"),
        ({}, {"ignore": ["size", "land"]}, "needs feature columns"),
        ({}, {"split": {"val": 0.6, "test": 0.5}}, "sum is below 1. Found 1.1"),
        ({}, {"split": {"valid": 0.6}}, "data.options.split is"),
        ({}, {"targets": {"price": {"kind": "regression", "std": 0}}}, "price: std is a number above 0. Found 0"),
        ({}, {"targets": {"kind": {"kind": "classification"}}}, "`classes` lists two or more"),
        ({}, {"targets": {"tags": {"kind": "multi_label"}}}, "`columns` lists the columns"),
        ({}, {"targets": {"price": {"kind": "count", "mean": 1}}}, "price: Unknown key.*'mean'"),
        ({}, {"targets": {"price": "count"}}, "price needs a kind"),
    ],
)
def test_faults_are_one_line(changed: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match=message) as found:
        data = table(tmp_path, {**ROWS, **changed}, **options)
        data.samples("train")
    assert "\n" not in str(found.value)


def test_texts_without_end_are_no_choices(tmp_path: Path) -> None:
    rows = {"name": [f"n{i}" for i in range(200)], "visits": range(200)}
    with pytest.raises(DataError, match="at most 100 different ones. name has 140, such as 'n1' and 'n10'"):
        table(tmp_path, rows, targets={"visits": {"kind": "count"}}, split={}).input_sizes()


def test_a_file_that_is_absent_or_no_table(tmp_path: Path) -> None:
    assert "There is no file" in Table(str(tmp_path), file="a.csv", targets=TARGETS).missing()[0]
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises((DataError, SuiteError), match="Parquet"):
        Table(str(tmp_path), file="a.parquet", targets=TARGETS).sample_count("train")


def test_the_tables_of_packages_keep_the_contract() -> None:
    assert all(finding.ok for finding in check_data_module("data_modules.table_sets:Diabetes"))
    data = Diabetes()
    assert {split: data.sample_count(split) for split in data.SPLITS} == {"train": 310, "val": 66, "test": 66}
    assert data.input_sizes() == {"features": 7} and data.doubts("train") == []
    sexes = [int(data.samples("train")[i]["targets"]["sex"]) for i in range(310)]
    assert 100 < sum(sexes) < 210


def test_the_tables_of_river() -> None:
    from data_modules.table_sets import SolarFlare, Yeast

    yeast, sun = Yeast(), SolarFlare()
    assert yeast.input_sizes() == {"features": 103} and sum(yeast.sample_count(s) or 0 for s in yeast.SPLITS) == 2417
    assert sum(sun.sample_count(split) or 0 for split in sun.SPLITS) == 1066 and len(yeast.TASKS) == 14
