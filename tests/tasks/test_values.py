"""Range checks of targets: right values pass, one wrong value is found, alone or in a batch with ignored elements."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mtlbench.data import Collate
from mtlbench.errors import DataError
from mtlbench.tasks import (
    Classification,
    Depth,
    Edges,
    HumanParts,
    Normals,
    Regression,
    Saliency,
    SemanticSegmentation,
    Task,
)
from mtlbench.tasks.taskonomy import InverseDepth, SoftClassification, ValueMap

SIZE = (6, 7)
NAN, INF = float("nan"), float("inf")
DENSE = {
    SemanticSegmentation("t", classes=5): (torch.full(SIZE, 4), [5, -1, 254, 256, 300]),
    HumanParts("t"): (torch.zeros(SIZE, dtype=torch.int64), [7, 127]),
    Saliency("t"): (torch.ones(1, *SIZE), [0.5, 2, -1, NAN, INF, 256, 254]),
    Edges("t"): (torch.zeros(1, *SIZE), [0.99, 254.0]),
    Depth("t"): (torch.full((1, *SIZE), 0.5), [0, -1, NAN, INF, -INF]),
    InverseDepth("t"): (torch.full((1, *SIZE), 0.5), [0, -3, NAN]),
    Normals("t"): (F.normalize(torch.ones(3, *SIZE), dim=0), [3, NAN, INF, 0]),
    ValueMap("t", outputs=2): (torch.full((2, *SIZE), -9.0), [NAN, INF]),
}
WHOLE = {
    Classification("t", classes=3): (torch.tensor(2), [torch.tensor(3), torch.tensor(-2)]),
    Regression("t"): (torch.tensor(-1e6), [torch.tensor(INF)]),
    SoftClassification("t", classes=2): (
        torch.tensor([0.25, 0.75]),
        [torch.tensor([0.5, 0.6]), torch.tensor([-0.5, 1.5]), torch.tensor([NAN, 1.0])],
    ),
}


def cases() -> list[tuple[Task, torch.Tensor, torch.Tensor]]:
    found = []
    for task, (good, values) in DENSE.items():
        for value in values:
            bad = good.clone()
            bad[..., 3, 2] = value
            found.append((task, good, bad))
    return found + [(task, good, bad) for task, (good, wrong) in WHOLE.items() for bad in wrong]


@pytest.mark.parametrize(("task", "good", "bad"), cases(), ids=lambda v: type(v).__name__)
def test_one_wrong_value_is_found(task: Task, good: torch.Tensor, bad: torch.Tensor) -> None:
    partly = good.clone()
    if task.dense:
        partly[..., 0, :] = task.blank(*SIZE)[..., 0, :]
        bad[..., 0, :] = task.blank(*SIZE)[..., 0, :]
    for fine in (good, partly, task.blank(*SIZE)):
        assert task.fault(fine[None]) is None
    assert task.fault(torch.stack([good, partly, task.blank(*SIZE)])) is None
    assert task.fault(bad[None]) and task.fault(torch.stack([good, bad, task.blank(*SIZE)]))


def test_a_batch_names_image_task_rule_and_value() -> None:
    task = SemanticSegmentation("semseg", classes=5)

    def sample(number: int, value: int) -> dict[str, object]:
        target = torch.full(SIZE, value)
        return {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), "targets": {"semseg": target}, "id": f"s{number}"}

    with pytest.raises(DataError, match=r"s1: semseg: classes are 0..4, or 255 for ignore. Found 7"):
        Collate({"semseg": task})([sample(0, 4), sample(1, 7)])
    wrong = {**sample(2, 1), "targets": {"semseg": torch.ones(SIZE)}}
    rule = r"s2: semseg: the label must be torch.int64 of shape \(6, 7\), found torch.float32"
    with pytest.raises(DataError, match=rule):
        Collate({"semseg": task})([wrong])


def test_a_number_is_learned_as_a_deviation_and_scored_in_its_unit() -> None:
    task, target = Regression("a", mean=9.0, std=4.0), torch.tensor([1.0, float("nan"), 15.0])
    raw = torch.tensor([[-1.0], [7.0], [1.0]])  # Decoded: 5, 37, 13.
    assert task.decode(raw).tolist() == [5.0, 37.0, 13.0]
    assert task.loss(raw, target).item() == (-1 + 2) ** 2 + (1 - 1.5) ** 2
    metric = task.metric()
    metric.update(raw, target)
    assert metric.compute() == {"rmse@1": pytest.approx(((5 - 1) ** 2 / 2 + (13 - 15) ** 2 / 2) ** 0.5)}
    with pytest.raises(ValueError, match="std must be above 0. Found 0"):
        Regression("a", std=0)


def test_training_in_float64_takes_labels_of_either_float_type() -> None:
    task = Regression("mean")
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)

    def batch() -> object:
        labels = (torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float32))
        return Collate({"mean": task})([{"image": image, "targets": {"mean": y}, "id": "s"} for y in labels])

    batch()  # The form of a label is remembered from here.
    torch.set_default_dtype(torch.float64)
    try:
        batch()
    finally:
        torch.set_default_dtype(torch.float32)
