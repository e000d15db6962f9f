"""Metrics against independent references, with labels missing, in one process and on two ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, root_mean_squared_error
from torch import distributed

from mtlbench.metrics import Accuracy, DepthError, MeanIoU, MeanLoss, NormalsError, SquaredError, delta_m
from mtlbench.tasks import Depth, Edges, Saliency

IGNORE = 255


def draw(kind, seed=0, batch=6):
    """Returns random predictions and targets (B, ...) of one kind, a third of the labels ignored."""
    generator = np.random.default_rng(seed)
    shape = (batch, 5, 7)
    drop = generator.random(shape) < 0.33
    drop[0] = True  # an image without any label
    if kind == "classes":
        target = np.where(drop, IGNORE, generator.integers(0, 4, shape))
        return torch.from_numpy(generator.normal(size=(batch, 4, 5, 7))), torch.from_numpy(target)
    if kind == "binary":
        target = np.where(drop, IGNORE, generator.integers(0, 2, shape))[:, None].astype(np.float32)
        return torch.from_numpy(generator.normal(size=(batch, 1, 5, 7))), torch.from_numpy(target)
    if kind == "depth":
        target = np.where(drop, IGNORE, generator.uniform(0.5, 9, shape))[:, None]
        return torch.from_numpy(generator.uniform(0, 9, (batch, 1, 5, 7))), torch.from_numpy(target)
    if kind == "normals":
        vectors = generator.normal(size=(batch, 3, 5, 7))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = 5 * vectors + generator.normal(size=vectors.shape) * generator.uniform(0, 4, (batch, 1, 5, 7))
        return torch.from_numpy(near), torch.from_numpy(np.where(drop[:, None], IGNORE, vectors))
    if kind == "labels":
        target = np.where(generator.random(batch) < 0.33, -1, generator.integers(0, 4, batch))
        return torch.from_numpy(generator.normal(size=(batch, 4))), torch.from_numpy(target)
    target = np.where(generator.random(batch) < 0.33, np.nan, generator.normal(size=batch))
    return torch.from_numpy(generator.normal(size=(batch, 1))), torch.from_numpy(target)


def mean_iou(prediction, target, ignore=IGNORE):
    guess = prediction.argmax(1) if prediction.shape[1] > 1 else (prediction[:, 0] > 0).long()
    truth = target.reshape(guess.shape).long()
    matrix = confusion_matrix(truth[truth != ignore], guess[truth != ignore], labels=range(4))
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return np.mean([matrix[c, c] / union[c] for c in range(4) if union[c]])


def angles(prediction, target):
    """Returns the angle in degrees of every labelled pixel, one at a time."""
    found = []
    for b, y, x in np.ndindex(target.shape[0], *target.shape[2:]):
        p, t = prediction[b, :, y, x].numpy(), target[b, :, y, x].numpy()
        if t[0] != IGNORE:
            found.append(math.degrees(math.atan2(np.linalg.norm(np.cross(p, t)), p @ t)))
    return np.array(found)


def make(kind):
    return {
        "classes": lambda: MeanIoU(4), "binary": lambda: MeanIoU(2, protocol="saliency_miou@1", binary=True),
        "depth": DepthError, "normals": NormalsError, "labels": Accuracy, "number": SquaredError,
        "loss": lambda: MeanLoss(Depth("far"), protocol="loss"),
    }[kind]()  # fmt: skip


KINDS = ("classes", "binary", "depth", "normals", "labels", "number", "loss")


def expected(kind, prediction, target):
    if kind in ("classes", "binary"):
        return {"semseg_miou@1" if kind == "classes" else "saliency_miou@1": mean_iou(prediction, target)}
    if kind == "normals":
        found = angles(prediction, target)
        return {
            "normals_mean@1": found.mean(), "normals_within_11.25@1": (found < 11.25).mean(),
            "normals_median@1": pytest.approx(np.sort(found)[(len(found) - 1) // 2], abs=0.011),
        }  # fmt: skip
    if kind in ("depth", "loss"):
        valid = target != IGNORE
        error, truth = (prediction - target).abs()[valid].numpy(), target[valid].numpy()
        if kind == "loss":
            return {"loss": error.mean()}
        return {
            "depth_rmse@1": np.sqrt((error**2).mean()), "depth_abs@1": error.mean(),
            "depth_rel@1": (error / truth).mean(),
        }  # fmt: skip
    if kind == "labels":
        valid = target != -1
        return {"accuracy@1": accuracy_score(target[valid], prediction.argmax(1)[valid])}
    valid = ~target.isnan()
    return {"rmse@1": root_mean_squared_error(target[valid], prediction[valid, 0])}


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == (value if hasattr(value, "expected") else pytest.approx(value, rel=1e-9)), key


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_reference(kind, seed):
    prediction, target = draw("depth" if kind == "loss" else kind, seed)
    metric = make(kind)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(prediction[part], target[part])
    close(metric.compute(), expected(kind, prediction, target))


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_forgets_when_reset_and_has_no_score_without_labels(kind):
    prediction, target = draw("depth" if kind == "loss" else kind)
    metric = make(kind)
    metric.update(prediction, target)
    metric.reset()
    blank = torch.full_like(target, {"labels": -1, "number": float("nan")}.get(kind, IGNORE))
    metric.update(prediction, blank)
    assert all(math.isnan(value) for value in metric.compute().values())


def _on_a_rank(kinds):
    """Returns the scores of unequal shares: rank 0 sees one image in six, the first of which has no label."""
    rank, found = distributed.get_rank(), {}
    for kind in kinds:
        prediction, target = draw("depth" if kind == "loss" else kind, seed=5, batch=7)
        share = slice(0, 2) if rank == 0 else slice(2, 7)
        metric = make(kind)
        metric.update(prediction[share], target[share])
        found[kind] = metric.compute()
    return found


def test_two_ranks_with_unequal_shares(pool):
    one, two = pool.call(_on_a_rank, KINDS)
    for kind in KINDS:
        wanted = expected(kind, *draw("depth" if kind == "loss" else kind, seed=5, batch=7))
        close(one[kind], wanted)
        assert one[kind] == two[kind]


def test_absent_classes_do_not_count_and_wrong_ones_do():
    scores = torch.eye(3)[torch.tensor([[0, 0, 1, 1]])].permute(0, 2, 1)[:, :, None].double()  # (1, 3, 1, 4)
    metric = MeanIoU(3)
    metric.update(scores, torch.tensor([[[0, 0, 0, 1]]]))
    assert metric.compute()["semseg_miou@1"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_perfect_and_opposite_normals():
    truth = torch.nn.functional.normalize(torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    for factor, angle in ((3.0, 0.0), (-0.2, 180.0)):
        metric = NormalsError()
        metric.update(factor * truth, truth)
        found = metric.compute()
        assert found["normals_mean@1"] == pytest.approx(angle, abs=1e-4)
        assert found["normals_median@1"] == pytest.approx(angle, abs=0.006)
        assert found["normals_within_11.25@1"] == (angle == 0)


def test_the_loss_of_weighted_maps():
    logits, target = torch.zeros(1, 1, 1, 4), torch.tensor([[[[1.0, 0.0, 0.0, 255.0]]]])
    for task, value in ((Edges("edges", weight=0.9), (0.9 + 0.1 + 0.1) / 3), (Saliency("s"), (2 / 3 + 2 * 1 / 3) / 3)):
        metric = MeanLoss(task, protocol="loss")
        metric.update(logits, target)
        assert metric.compute()["loss"] == pytest.approx(math.log(2) * value)


def test_delta_m():
    base, up = {"seg": 40.0, "depth": 0.60}, {"seg": True, "depth": False}
    assert delta_m({"seg": 44.0, "depth": 0.66}, base, up) == pytest.approx(0, abs=1e-12)
    assert delta_m({"seg": 44.0, "depth": 0.54}, base, up) == pytest.approx(10)
    assert delta_m({"seg": 40.0, "depth": 0.66}, base, up) == pytest.approx(-5)
    assert delta_m({"seg": 30.0}, {"seg": 40.0}, up) == pytest.approx(-25)
    assert delta_m(base, base, up) == 0


def test_delta_m_refuses_what_it_cannot_compare():
    up = {"seg": True, "depth": False}
    for scores, base in (({"seg": 1.0}, {"depth": 1.0}), ({}, {}), ({"other": 1.0}, {"other": 1.0})):
        with pytest.raises(ValueError, match="same tasks"):
            delta_m(scores, base, up)
    with pytest.raises(ValueError, match="0 for seg"):
        delta_m({"seg": 1.0}, {"seg": 0.0}, up)
