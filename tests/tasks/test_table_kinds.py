"""Counts and several labels: losses, scores and floors by hand, missing labels, and values that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtlbench.metrics import LabelF1, PoissonDeviance
from mtlbench.tasks import Count, MultiLabel, form_fault

NAN = float("nan")
COUNT, LABELS = Count("flares"), MultiLabel("functions", labels=("a", "b", "c"))


def test_the_loss_of_a_count_is_that_of_a_poisson_distribution() -> None:
    z = torch.tensor([[0.5], [1.0], [-2.0]], requires_grad=True)
    loss = COUNT.loss(z, torch.tensor([3.0, NAN, 0.0]))
    assert loss.item() == pytest.approx(math.exp(0.5) - 1.5 + math.exp(-2))
    loss.backward()
    assert z.grad is not None and torch.allclose(z.grad[:, 0], torch.tensor([math.exp(0.5) - 3, 0, math.exp(-2)]))
    assert COUNT.count(torch.tensor([3.0, NAN, 0.0])) == 2
    assert COUNT.decode(torch.tensor([[0.0]])).item() == 1


def test_deviance_and_absolute_error() -> None:
    metric = PoissonDeviance(COUNT)
    metric.update(torch.tensor([[math.log(2.0)], [0.0]]), torch.tensor([4.0, NAN]))
    metric.update(torch.tensor([[math.log(3.0)]]), torch.tensor([0.0]))
    found = metric.compute()
    assert found["poisson_deviance@1"] == pytest.approx((2 * (4 * math.log(2) - 2) + 2 * 3) / 2)
    assert found["mae@1"] == pytest.approx((2 + 3) / 2)


def test_the_floor_of_a_count_is_its_mean() -> None:
    blind = COUNT.blind()
    blind.update(torch.tensor([0.0, 3.0, NAN]))
    blind.update(torch.tensor([3.0]))
    assert COUNT.decode(blind.prediction()[None]).item() == pytest.approx(2)


@pytest.mark.parametrize(("value", "found"), [(-1.0, "-1.0"), (1.5, "1.5"), (math.inf, "inf")])
def test_what_is_no_count(value: float, found: str) -> None:
    assert f"Found {found}" in (COUNT.fault(torch.tensor([2.0, NAN, value])) or "")
    assert COUNT.fault(torch.tensor([2.0, NAN])) is None


def test_labels_are_missing_one_by_one() -> None:
    target = torch.tensor([[1.0, NAN, 0.0]])
    scores = torch.tensor([[0.0, NAN, 2.0]], requires_grad=True)
    loss = LABELS.loss(scores, target)
    assert loss.item() == pytest.approx(math.log(2) + math.log(1 + math.exp(2)))
    loss.backward()
    assert scores.grad is not None and scores.grad[0, 1] == 0 and scores.grad.isfinite().all()
    assert LABELS.count(target) == 2 and form_fault(LABELS, target[0], 0, 0) is None
    assert LABELS.count(LABELS.blank(0, 0)[None]) == 0


def test_f1_over_all_decisions() -> None:
    metric = LabelF1()
    metric.update(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    metric.update(torch.tensor([[1.0, 5.0, -1.0]]), torch.tensor([[1.0, NAN, 0.0]]))
    assert metric.compute() == {"micro_f1@1": pytest.approx(2 * 2 / 6), "label_accuracy@1": pytest.approx(3 / 5)}
    metric.update(torch.tensor([[NAN, 0.0, 0.0]]), torch.tensor([[1.0, NAN, NAN]]))
    assert math.isnan(metric.compute()["micro_f1@1"]), "a score that is not a number is no decision"


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    metric = LabelF1()
    assert math.isnan(metric.compute()["micro_f1@1"])
    metric.update(torch.tensor([[-1.0]]), torch.tensor([[0.0]]))
    assert metric.compute() == {"micro_f1@1": 1.0, "label_accuracy@1": 1.0}


def test_the_floor_of_several_labels_is_the_best_fixed_set() -> None:
    """All 2^5 sets are compared on the labels that the floor has seen."""
    task = MultiLabel("many", labels=tuple("abcde"))
    rates = np.array([0.8, 0.45, 0.4, 0.2, 0.05])
    labels = torch.from_numpy((np.random.default_rng(0).random((400, 5)) < rates).astype(np.float32))
    blind = task.blind()
    for part in labels.split(150):
        blind.update(part)
    chosen = blind.prediction()

    def f1(scores: torch.Tensor) -> float:
        metric = task.metric()
        metric.update(scores.expand(400, -1), labels)
        return metric.compute()["micro_f1@1"]

    every = [torch.tensor([1.0 if i >> k & 1 else -1.0 for k in range(5)]) for i in range(32)]
    assert f1(chosen) == max(map(f1, every)) and (chosen > 0).sum() not in (0, 1, 5)


def test_labels_as_text() -> None:
    assert LABELS.caption(np.array([0.9, 0.2, 0.7])) == "a, c"
    assert LABELS.caption(np.zeros(3)) == "none" and LABELS.caption(np.full(3, NAN)) == "–"
    assert "0 or 1, or NaN for missing. Found 0.5" in (LABELS.fault(torch.tensor([[0.5, 1, NAN]])) or "")
