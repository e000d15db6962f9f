"""Inputs of any nesting: what samples may hold, how they are stacked, and what is refused with a clear message."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlbench.data import Collate
from mtlbench.errors import DataError
from mtlbench.tasks import Regression, SemanticSegmentation
from mtlbench.tasks.inputs import VECTORS, input_fault, length

TASKS = {"size": Regression("size")}


def sample(name: str, **holder: Any) -> dict[str, Any]:
    return {"targets": {"size": torch.tensor(1.0)}, "id": name, **holder}


def test_nested_inputs_gain_an_axis_on_every_tensor() -> None:
    ones = [{"nodes": torch.full((4, 2), i), "edges": [torch.tensor([i]), torch.zeros(3)]} for i in range(5)]
    batch = Collate(TASKS)([sample(str(i), inputs=one) for i, one in enumerate(ones)])
    assert batch["inputs"]["nodes"].shape == (5, 4, 2) and batch["inputs"]["nodes"][3, 0, 0] == 3
    assert [leaf.shape for leaf in batch["inputs"]["edges"]] == [(5, 1), (5, 3)]
    assert length(batch) == 5 and length({"inputs": batch["inputs"]}) == 5


def test_images_keep_their_key_in_samples_and_their_former_name_in_batches() -> None:
    batch = Collate(TASKS)([sample("a", image=torch.zeros(3, 4, 5, dtype=torch.uint8))])
    assert batch["inputs"].shape == (1, 3, 4, 5)
    with pytest.warns(DeprecationWarning, match=r"batch\['inputs'\]"):
        assert batch["image"] is batch["inputs"]
    with pytest.raises(KeyError, match="other"):
        batch["other"]


@pytest.mark.parametrize(
    ("holder", "message"),
    [
        ({"image": torch.rand(3, 4, 5)}, r"a: an image is uint8 \(3, H, W\). Found float32 \(3, 4, 5\)"),
        ({"image": torch.zeros(4, 5, 3, dtype=torch.uint8)}, r"Found uint8 \(4, 5, 3\)"),
        ({"inputs": torch.tensor([1.0, float("nan")])}, "inputs are finite. Found nan"),
        ({"inputs": {"text": "words"}}, "inputs are tensors, in any nesting. Found str"),
        ({}, "holds `inputs`, or `image`.* Found targets, id"),
    ],
)
def test_inputs_of_another_form_are_refused_when_first_seen(holder: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Collate(TASKS)([sample("a", **holder)])


def test_inputs_of_a_batch_have_one_form() -> None:
    with pytest.raises(DataError, match=r"Inputs of one batch.*float32 \(2,\), float32 \(3,\).*a, b"):
        Collate(TASKS)([sample("a", inputs=torch.zeros(2)), sample("b", inputs=torch.zeros(3))])


def test_a_data_module_with_vectors_gives_vectors() -> None:
    assert input_fault(sample("a", inputs=torch.zeros(3)), VECTORS) is None
    fault = input_fault({"inputs": torch.zeros(3).long()}, VECTORS)
    assert fault == "a vector is floating point (features,). Found int64 (3,)"


def test_dense_labels_need_pixels() -> None:
    dense = {"map": SemanticSegmentation("map", classes=2)}
    one = {"inputs": torch.zeros(3), "targets": {"map": torch.zeros(4, 5, dtype=torch.int64)}, "id": "a"}
    with pytest.raises(DataError, match="a: map: the label must be"):
        Collate(dense)([one])
