"""Predictions without the image: closed forms for every kind of task, missing labels, and sums over ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchmetrics import Metric

from mtlbench import distributed
from mtlbench.metrics.protocol import higher
from mtlbench.tasks import (
    IGNORE,
    Classification,
    Depth,
    Edges,
    HumanParts,
    Normals,
    Regression,
    Saliency,
    SemanticSegmentation,
    blind,
)
from mtlbench.tasks.taskonomy import CosineNormals, InverseDepth, SoftClassification, ValueMap

NAN = float("nan")
SIZE = (4, 6)
KINDS = {
    task.name: task
    for task in (
        SemanticSegmentation("semseg", classes=3),
        HumanParts("parts", classes=3),
        Saliency("saliency"),
        Edges("edges", max_distance=0.2),
        Normals("normals"),
        CosineNormals("cosine_normals"),
        Depth("depth"),
        InverseDepth("inverse_depth"),
        ValueMap("values", outputs=2),
        ValueMap("squares", power=2),
        Classification("kind", classes=4),
        SoftClassification("soft", classes=4),
        Regression("number"),
    )
}


def fitted(task, *batches, size=SIZE):
    """Returns the prediction for batches of targets, in one process."""
    found = task.blind()
    for target in (task.blank(*size)[None], *batches):
        found.update(target)
    found.reduce()
    return found.prediction()


def drawn(task, count=9, seed=0):
    """Returns random targets; the second has no label, and dense ones lack a third of their elements."""
    generator = torch.Generator().manual_seed(seed)
    blank = task.blank(*SIZE)
    if isinstance(task, SemanticSegmentation):
        target = torch.randint(0, task.classes, (count, *SIZE), generator=generator)
    elif isinstance(task, Classification):
        target = torch.randint(0, task.classes, (count,), generator=generator)
    elif isinstance(task, SoftClassification):
        target = torch.rand(count, task.classes, generator=generator).softmax(1)
    elif isinstance(task, (Saliency, Edges)):
        target = (torch.rand(count, 1, *SIZE, generator=generator) < 0.3).float()
    elif isinstance(task, Normals):
        target = F.normalize(torch.randn(count, 3, *SIZE, generator=generator), dim=1)
    else:
        target = 1 + torch.rand(count, *blank.shape, generator=generator)
    if task.dense:
        hidden = torch.rand(count, 1, *SIZE, generator=generator) < 1 / 3
        target = torch.where(hidden if target.ndim == 4 else hidden[:, 0], blank.to(target.dtype), target)
    target[1:2] = blank
    return target


def score(task, prediction, targets):
    """Returns the task's first score of one prediction for all images, and whether more is better."""
    metric, protocol = task.metric(), task.protocols[0]
    metric.update(prediction.float().expand(len(targets), *prediction.shape), targets)
    return metric.compute()[protocol.id], protocol.higher_is_better


# ---- closed forms ---------------------------------------------------------------------------------------------------


def test_a_number_is_the_mean() -> None:
    assert_close(fitted(Regression("a"), torch.tensor([1.0, NAN]), torch.tensor([4.0])), torch.tensor([2.5]).double())


def test_a_standardised_number_is_the_mean_once_it_is_decoded() -> None:
    task = Regression("a", mean=9.0, std=4.0)
    found = fitted(task, torch.tensor([1.0, NAN]), torch.tensor([4.0]))
    assert_close(found, torch.tensor([(2.5 - 9) / 4]).double())
    assert_close(task.decode(found[None]), torch.tensor([2.5]).double())


def test_a_class_is_the_most_frequent_one_with_its_share() -> None:
    found = fitted(Classification("a", classes=3), torch.tensor([0, 2, -1]), torch.tensor([2, -1]))
    assert_close(found.softmax(0), torch.tensor([1 / 3, 0, 2 / 3]).double(), atol=1e-5, rtol=0)


def test_a_distribution_is_the_mean_with_the_likeliest_class_first() -> None:
    task = SoftClassification("a", classes=3)
    plain = fitted(task, torch.tensor([[0.5, 0.3, 0.2], [NAN] * 3, [0.1, 0.5, 0.4], [0.9, 0.1, 0.0]]))
    assert_close(plain.softmax(0), torch.tensor([0.5, 0.3, 0.2]).double(), atol=1e-3, rtol=0)
    # On average the first class is likeliest, but in two of three images it is the second.
    other = fitted(task, torch.tensor([[0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0]]))
    assert_close(other.softmax(0), torch.tensor([0.4, 0.6, 0.0]).double(), atol=1e-3, rtol=0)


def test_depth_is_the_mean_of_every_pixel() -> None:
    first, second = (
        torch.tensor([[[[1.0, 2.0, 255.0]]], [[[3.0, 255.0, 255.0]]]]),
        torch.tensor([[[[8.0, 6.0, 255.0]]]]),
    )
    found = fitted(Depth("a"), first, second, size=(1, 3))
    # The last pixel never has a label: the mean of all five labels.
    assert_close(found, torch.tensor([[[4.0, 4.0, 4.0]]]).double())
    assert found.dtype == torch.float64


@pytest.mark.parametrize("task", [ValueMap("a"), ValueMap("a", power=2), InverseDepth("a")])
def test_an_absolute_error_asks_for_the_median(task) -> None:
    target = torch.tensor([[1.0, 5.0, 255.0], [2.0, 255.0, 255.0], [9.0, 255.0, 255.0]])[:, None, None]
    # The last pixel has no label: the median of 1, 2, 5 and 9, the lower one.
    assert_close(fitted(task, target, size=(1, 3)), torch.tensor([[[2.0, 5.0, 2.0]]]))


def test_every_channel_of_a_map_has_its_own_median() -> None:
    target = torch.tensor([[[[1.0]], [[10.0]]], [[[2.0]], [[20.0]]], [[[3.0]], [[30.0]]]])
    assert_close(fitted(ValueMap("a", outputs=2), target, size=(1, 1)), torch.tensor([[[2.0]], [[20.0]]]))


@pytest.mark.parametrize("kind", [Normals, CosineNormals])
def test_normals_are_the_mean_vector_with_length_one(kind) -> None:
    one, other, none = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (255.0,) * 3
    target = torch.tensor([[one, one], [other, none]]).permute(0, 2, 1)[:, :, None]
    found = fitted(kind("a"), target, size=(1, 2))
    assert_close(found[:, 0].T, torch.tensor([[math.sqrt(0.5), 0, math.sqrt(0.5)], [1, 0, 0]]).double())


def test_a_binary_map_is_the_share_of_positives() -> None:
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 255.0], [0.0, 0.0, 255.0]])[:, None, None]
    found = blind.Mean(Edges("a").valid, lambda t: t == 1, blind.logits)
    found.update(target)
    assert_close(found.prediction().sigmoid(), torch.tensor([[[1 / 3, 2 / 3, 0]]]).double(), atol=1e-5, rtol=0)


def test_a_class_that_is_never_the_most_frequent_is_found_too() -> None:
    """Three images of a wall with a door on the left in one of them: the most frequent class alone scores 5/12."""
    task = SemanticSegmentation("a", classes=2)
    target = torch.tensor([[[1, 0]], [[0, 0]], [[0, 0]]])
    found = fitted(task, target, size=(1, 2))
    # Wall everywhere: (5/6 + 0) / 2. Door on the left: (3/5 + 1/3) / 2.
    assert found.argmax(0).tolist() == [[1, 0]]
    assert score(task, found, target)[0] == pytest.approx((3 / 5 + 1 / 3) / 2)


@pytest.mark.parametrize("seed", range(12))
def test_classes_have_the_best_mean_iou_of_all_maps(seed: int) -> None:
    """Against every one of the 3^5 maps of five pixels; the search may miss the best by a per cent."""
    generator = torch.Generator().manual_seed(seed)
    task = SemanticSegmentation("a", classes=3)
    weights = torch.rand(5, 3, generator=generator) * torch.tensor([6.0, 2.0, 1.0])
    target = torch.multinomial(weights, 40, replacement=True, generator=generator).T[:, None]
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    maps = (F.one_hot(torch.tensor(m), 3).T[:, None].double() for m in itertools.product(range(3), repeat=5))
    best = max(score(task, one, target)[0] for one in maps)
    counts = torch.stack([(target == k).sum(0) for k in range(3)])
    mode = score(task, F.one_hot(counts.argmax(0), 3).permute(2, 0, 1), target)[0]
    found = score(task, fitted(task, target, size=(1, 5)), target)[0]
    assert max(mode, 0.99 * best) <= found <= best + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_saliency_has_the_best_mean_iou_of_all_maps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    task = Saliency("a")
    rates = torch.rand(7, generator=generator) * 0.6
    target = (torch.rand(30, 1, 1, 7, generator=generator) < rates).float()
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    maps = (2.0 * torch.tensor(m)[None, None] - 1 for m in itertools.product((0, 1), repeat=7))
    best = max(score(task, one, target)[0] for one in maps)
    assert score(task, fitted(task, target, size=(1, 7)), target)[0] == pytest.approx(best)


@pytest.mark.parametrize(("value", "positive"), [(0.0, False), (1.0, True)])
def test_saliency_of_one_kind_alone(value: float, positive: bool) -> None:
    found = fitted(Saliency("a"), torch.full((3, 1, 1, 4), value), size=(1, 4))
    assert ((found > 0) == positive).all()


class _Near(Metric):
    """Scores how near predictions are to a value."""

    protocols = higher("near@1")

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        self.add_state("distance", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, prediction, target):
        self.distance += (prediction - self.wanted).abs().sum()

    def compute(self):
        return {"near@1": -float(self.distance)}


@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_edges_are_the_better_of_two_by_the_score(wanted: float) -> None:
    """Edges in three of four images: a logit of log 3, against 0 everywhere."""
    task = Edges("a")
    target = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    found = blind.Best(task.valid, blind.Mean(task.valid, lambda t: t == 1, blind.logits), lambda: _Near(wanted))
    found.update(target)
    found.reduce()
    assert_close(found.prediction(), torch.full((1, 2, 2), math.log(3) if wanted else 0.0).double())


def test_edges_by_their_own_score() -> None:
    """The same line in every image: the share finds it exactly, one value everywhere does not."""
    task = Edges("a", max_distance=0.05)
    target = torch.zeros(3, 1, 9, 9)
    target[:, :, 4] = 1
    found = fitted(task, target, size=(9, 9))
    assert score(task, found, target)[0] == 1.0
    assert score(task, torch.zeros(1, 9, 9), target)[0] < 1.0


# ---- every kind -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_no_labels_no_prediction(task) -> None:
    found = fitted(task, torch.stack([task.blank(*SIZE)] * 3))
    assert found.isnan().all() and found.shape == ((task.channels, *SIZE) if task.dense else (task.channels,))
    value, _ = score(task, found, drawn(task))
    assert math.isnan(value)


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_batches_add_up_and_blanks_add_nothing(task) -> None:
    target = drawn(task)
    blank = task.blank(*SIZE)[None]
    found = fitted(task, target)
    assert found.isfinite().all() and found.shape == ((task.channels, *SIZE) if task.dense else (task.channels,))
    assert_close(fitted(task, target[:2], blank, target[2:7], blank, target[7:]), found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_nothing_near_scores_better(task) -> None:
    """No random change of the prediction is better on the training labels."""
    target, generator = drawn(task, 30), torch.Generator().manual_seed(1)
    found = fitted(task, target).float()
    best, up = score(task, found, target)
    for size in (0.01, 0.1, 1.0) if not isinstance(task, (Edges, Normals)) else ():
        for _ in range(5):
            other, _ = score(task, found + size * torch.randn(found.shape, generator=generator), target)
            # A cut of the shares may miss the best set of pixels by a little.
            assert (other - best) * (1 if up else -1) <= (0.01 if isinstance(task, Saliency) else 1e-6)
    if isinstance(task, Normals):  # The mean vector has the least squared distance, not the least angle.
        valid = task.valid(target)
        squares = [
            float(((F.normalize(found + noise, dim=0) - target).square().sum(1) * valid).sum())
            for noise in (0, *(0.1 * torch.randn(5, *found.shape, generator=generator)))
        ]
        assert min(squares) == squares[0]


def test_the_median_keeps_the_first_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "MEDIAN_VALUES", 6)
    task = ValueMap("a")
    labels = [255.0, 1.0, 1.0, 255.0, 5.0, 9.0, 9.0, 9.0]
    target = torch.tensor(labels).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    assert_close(fitted(task, target[:3], target[3:], size=(1, 2)), torch.full((1, 1, 2), 1.0))


# ---- ranks ----------------------------------------------------------------------------------------------------------


def on_this_rank(name: str, count: int) -> torch.Tensor:
    """Returns the prediction of a kind, fitted on this rank's share of the targets."""
    task = KINDS[name]
    found = task.blind()
    found.update(task.blank(*SIZE)[None])
    share = drawn(task, count)[distributed.rank() :: distributed.world_size()]
    for target in share.split(2) if len(share) else ():
        found.update(target)
    found.reduce()
    return found.prediction()


@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_equal_one_process(name: str, pool) -> None:
    one, other = pool.call(on_this_rank, name, 9)
    assert torch.equal(one.nan_to_num(), other.nan_to_num())
    assert_close(one, on_this_rank(name, 9), rtol=1e-12, atol=1e-12)


def few_on_this_rank(name: str, values: int) -> torch.Tensor:
    """As `on_this_rank`, where medians and edges keep few labels."""
    before = blind.MEDIAN_VALUES, blind.COMPARED_IMAGES
    blind.MEDIAN_VALUES, blind.COMPARED_IMAGES = values, 3
    try:
        return on_this_rank(name, 12)
    finally:
        blind.MEDIAN_VALUES, blind.COMPARED_IMAGES = before


@pytest.mark.parametrize("name", ["inverse_depth", "values", "edges"])
def test_ranks_keep_the_same_first_labels(name: str, pool) -> None:
    values = 5 * int(np.prod(KINDS[name].blank(*SIZE).shape))
    alone = few_on_this_rank(name, values)
    assert_close(pool.call(few_on_this_rank, name, values)[0], alone)
    if name != "edges":
        assert not torch.equal(alone, on_this_rank(name, 12)), "more labels would change the median"


def test_a_rank_without_images(pool) -> None:
    one, other = pool.call(on_this_rank, "number", 1)
    assert_close(one, on_this_rank("number", 1))
    assert_close(one, other)
