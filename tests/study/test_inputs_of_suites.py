"""Suites on other inputs than images: every part that does not fit is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.errors import SuiteError
from mtlbench.study.resolve import Local, Study, resolve

TEXT = """\
name: vectors
version: 1
data: {module: "data_modules.table_sets:Diabetes"}
model: {encoder: "mlp:residual", encoder_options: {width: 8, depth: 2}}
trainer: {steps: 2}
methods: [uniform]
"""


def study(tmp_path: Path, *changes: str) -> Study:
    path = tmp_path / "vectors.yaml"
    path.write_text(TEXT)
    found = suites.read(str(path), changes)
    if found.faults or found.suite is None:
        raise SuiteError("\n".join(found.faults))
    return resolve(found.suite, Local(), list(changes), lambda key: found.places.get(key, key))


def test_a_run_knows_the_sizes_of_its_inputs_and_no_size_of_images(tmp_path: Path) -> None:
    (spec, floor), other = study(tmp_path).members, study(tmp_path, "data.options.split={seed: 1}").members[0]
    assert spec.model["inputs"] == {"features": 7} and "image_size" not in spec.model
    assert floor.model["inputs"] == {"features": 7} and other.hash != spec.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.encoder=resnet18", "model.image_size is required"),
        ("model.image_size=[32, 32]", "model.image_size is the size of images, and mlp:residual takes none. Remove it"),
        ("model.encoder=mlp:residul", "'residul'.*residual"),
        ("model.encoder=mpl:residual", "family of encoders 'mpl'.*mlp"),
        ("model.encoder_options={widht: 3}", "'widht'.*width"),
        ("data.module=data_modules.digits:Digits", "mlp:residual takes vectors.*Digits has images. Choose timm"),
        ("methods=[uniform, mtan]", "methods=.*: mtan needs an encoder of the family timm. Found mlp:residual"),
        ("methods=[{name: uniform, model: {encoder: resnet18}}]", "same inputs.*mlp:residual.*resnet18"),
    ],
)
def test_parts_that_do_not_fit(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=message):
        study(tmp_path, change)


def test_images_and_vectors_do_not_fit_either_way(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"resnet18 takes images, and .*Diabetes has vectors. Choose mlp"):
        study(tmp_path, "model.encoder=resnet18", "model.image_size=[32, 32]")


def test_tasks_come_from_the_options_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,hits\n" + "".join(f"{i},{-i},{i % 3}\n" for i in range(20)))
    table = ["data.module=data_modules.table:Table", f"data.root={tmp_path}", "trainer.batch_size=4"]
    options = "data.options={file: rows.csv, targets: {hits: {kind: count}, b: {kind: regression}}}"
    found: Any = study(tmp_path, *table, options).members[0]
    assert found.tasks["hits"]["kind"] == "count" and found.model["inputs"] == {"features": 1}
    with pytest.raises(SuiteError, match="data.options=.*: Target hits: .*kind of a target 'counts'.*count"):
        study(tmp_path, *table, options.replace("kind: count", "kind: counts"))
    with pytest.raises(SuiteError, match="targets maps each task"):
        study(tmp_path, *table, "data.options={file: rows.csv}")
