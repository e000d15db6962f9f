"""Tasks: sums and counts that add, closed forms, and ignored elements that never matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mtlbench.tasks import (
    Classification,
    Depth,
    Edges,
    HumanParts,
    Normals,
    Regression,
    Saliency,
    SemanticSegmentation,
)

TASKS = {
    task.name: task
    for task in (
        SemanticSegmentation("semseg", classes=4),
        HumanParts("parts"),
        Saliency("saliency"),
        Edges("edges"),
        Normals("normals"),
        Depth("depth"),
        Classification("kind", classes=5),
        Regression("number"),
    )
}
SIZE = (5, 7)


def draw(task, batch=4, seed=0):
    """Returns random predictions and targets of a task; the second image has no label, others lack some."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, task.channels, *SIZE) if task.dense else (batch, task.channels)
    prediction = torch.randn(shape, generator=generator, dtype=torch.float64)
    if isinstance(task, Classification):
        target = torch.randint(0, task.classes, (batch,), generator=generator)
    elif isinstance(task, Regression):
        target = torch.randn(batch, generator=generator, dtype=torch.float64)
    elif isinstance(task, SemanticSegmentation):
        target = torch.randint(0, task.classes, (batch, *SIZE), generator=generator)
    elif isinstance(task, Normals):
        target = F.normalize(torch.randn(batch, 3, *SIZE, generator=generator, dtype=torch.float64), dim=1)
    elif isinstance(task, Depth):
        target = 1 + torch.rand(batch, 1, *SIZE, generator=generator, dtype=torch.float64)
    else:
        target = torch.randint(0, 2, (batch, 1, *SIZE), generator=generator).double()
    if task.dense:
        hidden = torch.rand(batch, 1, *SIZE, generator=generator) < 0.3
        blank = task.blank(*SIZE).to(target)
        target = torch.where(hidden if target.ndim == 4 else hidden[:, 0], blank, target)
    target[1] = task.blank(*SIZE)
    return prediction, target


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def test_sums_and_counts_of_parts_are_those_of_the_whole(task):
    prediction, target = draw(task)
    parts = [slice(0, 1), slice(1, 2), slice(2, 4)]
    whole = task.loss(prediction, target)
    assert whole.ndim == 0 and whole > 0
    assert_close(sum(task.loss(prediction[p], target[p]) for p in parts), whole)
    counts = [task.count(target[p]) for p in parts]
    assert sum(counts) == task.count(target) == int(task.valid(target).sum()) > counts[0] > 0 == counts[1]


def test_blank_is_no_label(task):
    prediction, target = draw(task)
    blank = task.blank(*SIZE)[None].to(target)
    assert task.count(blank) == 0 and not task.valid(blank).any()
    prediction = prediction[:1].requires_grad_()
    loss = task.loss(prediction, blank)
    assert loss == 0
    # It stays in the graph: a parameter of an absent task still takes part in the reduction over ranks.
    assert torch.autograd.grad(loss, prediction)[0].eq(0).all()


def test_ignored_elements_have_no_gradient(task):
    prediction, target = draw(task)
    valid = task.valid(target)
    prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(prediction, target), prediction)
    per_element = gradient.abs().sum(1)
    assert per_element[~valid].eq(0).all() and (per_element[valid] > 0).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_ignored_predictions_may_hold_anything(task, poison):
    prediction, target = draw(task)
    hidden = ~task.valid(target)[:, None].expand_as(prediction)
    poisoned = prediction.masked_fill(hidden, poison).requires_grad_()
    clean = prediction.clone().requires_grad_()
    losses = [task.loss(p, target) for p in (clean, poisoned)]
    gradients = [torch.autograd.grad(loss, p)[0] for loss, p in zip(losses, (clean, poisoned), strict=True)]
    assert_close(losses[0], losses[1])
    assert_close(gradients[0], gradients[1])


def test_ignored_normals_may_hold_anything_in_other_channels():
    task = TASKS["normals"]
    prediction, target = draw(task)
    poisoned = target.clone()
    poisoned[:, 1:].masked_fill_(~task.valid(target)[:, None], float("nan"))
    prediction.requires_grad_()
    clean, dirty = (torch.autograd.grad(task.loss(prediction, t), prediction)[0] for t in (target, poisoned))
    assert_close(clean, dirty)


# ---- closed forms ---------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    ones = torch.ones(1, 1, 1, 2)
    assert TASKS["depth"].loss(3 * ones, torch.tensor([[[[1.0, 255.0]]]])).item() == 2.0
    assert TASKS["number"].loss(torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, float("nan")])).item() == 4.0
    kind = TASKS["kind"].loss(torch.zeros(2, 5), torch.tensor([3, -1]))
    assert kind.item() == pytest.approx(math.log(5))
    semseg = TASKS["semseg"].loss(torch.zeros(1, 4, 1, 3), torch.tensor([[[0, 3, 255]]]))
    assert semseg.item() == pytest.approx(2 * math.log(4))
    # The prediction counts by its direction alone; L1 is the mean over channels.
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert TASKS["normals"].loss(7 * target, target).item() == 0
    assert TASKS["normals"].loss(torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1), target).item() == pytest.approx(2 / 3)


def test_saliency_weighs_by_image():
    logits = torch.zeros(2, 1, 1, 4)
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 255.0]]).view(2, 1, 1, 4)
    # First: one positive of four, weight 3/4; negatives 1/4 each. Second: positives only, weight 0.
    assert TASKS["saliency"].loss(logits, target).item() == pytest.approx(math.log(2) * (3 / 4 + 3 / 4))


def test_decoding():
    scores = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    assert Classification("c", classes=2).decode(scores).tolist() == [1, 0]
    assert TASKS["edges"].decode(torch.zeros(1, 1, 2, 2)).eq(0.5).all()
    assert_close(TASKS["normals"].decode(torch.full((1, 3, 1, 1), 2.0)).norm(dim=1), torch.ones(1, 1, 1))
    assert TASKS["number"].decode(torch.ones(3, 1)).shape == (3,)


def test_metric_reports_the_protocols_that_the_task_declares(task):
    metric = task.metric()
    prediction, target = draw(task)
    metric.update(prediction, target)
    assert set(metric.compute()) == {protocol.id for protocol in task.protocols}
    assert all("@" in protocol.id for protocol in task.protocols)


def test_options_and_description():
    task = TASKS["depth"].with_options(scale=3.0, optional=True)
    assert (task.scale, task.optional, task.name) == (3.0, True, "depth") and TASKS["depth"].scale == 1.0
    described = task.describe()
    assert described["kind"] == "depth" and described["scale"] == 3.0
    assert described["protocols"][0] == {"id": "depth_rmse@1", "higher_is_better": False, "unit": "m"}
    assert all(task.in_delta_m for task in TASKS.values())
