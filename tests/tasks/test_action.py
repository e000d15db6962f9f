"""Actions: loss and metric by hand, missing labels, and success from episodes."""

from __future__ import annotations

import math

import numpy as np
import torch

from mtlbench.metrics import Success
from mtlbench.tasks import Action, form_fault

NAN = float("nan")
TASK = Action("reach", size=2)
TARGET = torch.tensor([[0.0, 1.0], [NAN, NAN], [1.0, -1.0]])


def test_the_loss_is_the_mean_square_of_known_actions_and_ignores_the_rest() -> None:
    prediction = torch.tensor([[1.0, 1.0], [NAN, 5.0], [1.0, 1.0]], requires_grad=True)
    loss = TASK.loss(prediction, TARGET)
    loss.backward()
    assert loss == (1 + 0) / 2 + (0 + 4) / 2 and TASK.count(TARGET) == 2
    assert prediction.grad is not None and prediction.grad.tolist() == [[1, 0], [0, 0], [0, 2]]


def test_a_blank_has_the_form_of_a_label_and_no_count() -> None:
    assert form_fault(TASK, TASK.blank(0, 0), 0, 0) is None and TASK.count(TASK.blank(0, 0)[None]) == 0
    assert form_fault(TASK, torch.zeros(3), 0, 0) is not None


def test_success_is_the_share_of_episodes_and_the_error_that_of_actions() -> None:
    metric = TASK.metric()
    metric.update(torch.tensor([[0.5, 1.0], [9.0, 9.0], [1.0, 0.0]]), TARGET)
    assert isinstance(metric, Success) and math.isnan(metric.compute()["success@1"]), "nobody has acted"
    metric.add_episodes(3, 10)
    metric.add_episodes(1, 6)
    assert metric.compute() == {"success@1": 4 / 16, "action_error@1": 1.5 / 4}


def test_the_floor_is_the_mean_action() -> None:
    blind = TASK.blind()
    assert blind is not None
    blind.update(TARGET)
    assert blind.prediction().tolist() == [0.5, 0.0]


def test_a_caption_holds_every_component() -> None:
    assert TASK.caption(np.array([0.25, -1.0])) == "0.25, -1" and TASK.caption(np.array([NAN, NAN])) == "–"
