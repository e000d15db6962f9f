"""Rare kinds of task: losses by hand, missing labels that may hold anything, scores under their own names."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.tasks import Normals
from mtlbench.tasks.taskonomy import CosineNormals, InverseDepth, SoftClassification, ValueMap

NAN = float("nan")


def by_hand(task, prediction, target):  # type: ignore[no-untyped-def]
    """Returns loss and gradient; the gradient must be finite whatever ignored elements hold."""
    prediction.requires_grad_()
    loss = task.loss(prediction, target)
    loss.backward()
    assert prediction.grad.isfinite().all()
    return loss.item(), prediction.grad


@pytest.mark.parametrize(("power", "expected"), [(1, (1 + 3) / 2 + 2), (2, (1 + 9) / 2 + 4)])
def test_value_maps_average_channels_and_sum_pixels(power: int, expected: float) -> None:
    target = torch.tensor([[[[0.0, 1.0, 255.0]], [[0.0, -1.0, 255.0]]]])
    prediction = torch.tensor([[[[1.0, 3.0, NAN]], [[3.0, 1.0, NAN]]]])
    task = ValueMap("x", outputs=2, power=power)
    loss, gradient = by_hand(task, prediction, target)
    assert loss == pytest.approx(expected) and not gradient[..., 2].any()
    assert task.count(target) == 2 and task.count(task.blank(3, 4)[None]) == 0 and task.blank(3, 4).shape == (2, 3, 4)
    metric = task.metric()
    metric.update(prediction.detach(), target)
    assert metric.compute()["map_l1@1"] == pytest.approx((1 + 3 + 2 + 2) / 4)


def test_cosine_normals_cost_one_minus_the_cosine() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [255.0] * 3]).T[None, :, None]
    prediction = torch.tensor([[0.0, 0.0, 5.0], [-2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [NAN] * 3]).T[None, :, None].clone()
    task = CosineNormals("n")
    loss, gradient = by_hand(task, prediction, target)
    assert loss == pytest.approx(0 + 2 + 1 - math.sqrt(0.5)) and not gradient[..., 3].any()
    assert task.kind == Normals.kind and task.protocols == Normals("n").protocols


def test_soft_labels_cost_their_cross_entropy() -> None:
    target = torch.tensor([[0.25, 0.75], [NAN, NAN]])
    prediction = torch.tensor([[0.0, math.log(3)], [NAN, NAN]])
    task = SoftClassification("c", classes=2)
    loss, gradient = by_hand(task, prediction, target)
    assert loss == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert gradient.abs().max() < 1e-6, "the least possible"
    assert task.count(target) == 1 and task.blank(1, 1).isnan().all() and task.blank(1, 1).shape == (2,)
    assert torch.allclose(task.decode(prediction[:1]), target[:1])


def test_inverse_depth_is_depth_without_metres() -> None:
    target = torch.tensor([[[[2.0, 4.0, 255.0]]]])
    task = InverseDepth("d")
    loss, _ = by_hand(task, torch.tensor([[[[1.0, 6.0, NAN]]]]), target)
    metric = task.metric()
    metric.update(torch.tensor([[[[1.0, 6.0, 9.0]]]]), target)
    assert loss == 3 and metric.compute() == {"inverse_depth_abs@1": 1.5, "inverse_depth_rel@1": 0.5}
