"""Linear heads on pooled features, against scikit-learn and values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Ridge

from mtlbench.errors import MethodError
from mtlbench.networks.constant import ConstantNetwork
from mtlbench.tasks import Classification, Depth, Detection, Regression, SemanticSegmentation
from mtlbench.training.linear_heads import features_of, ridge, scalar_labels


@pytest.mark.parametrize(("count", "width"), [(30, 5), (6, 40)])
def test_a_ridge_regression_with_an_intercept(count: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64) + 3
    y = x[:, 0] - 2 * x[:, 1]
    centred = x - x.mean(0)
    mean = float((centred @ centred.T).trace()) / min(count - 1, width)
    expected = Ridge(alpha=0.5 * mean).fit(x.numpy(), y.numpy()).coef_
    assert ridge(x, y - y.mean(), 0.5).numpy() == pytest.approx(expected)


def test_there_is_no_head_without_two_different_samples() -> None:
    for x in (torch.ones(4, 3), torch.ones(1, 3), torch.ones(0, 3)):
        assert ridge(x.double(), torch.zeros(len(x), dtype=torch.float64), 0.1).tolist() == [0, 0, 0]


def test_a_number_is_standardised_and_missing_ones_are_left_out() -> None:
    labels, kept = scalar_labels(Regression("t"), torch.tensor([1.0, math.nan, 3.0, 5.0]))
    assert kept.tolist() == [True, False, True, True]
    assert labels.abs().numpy() == pytest.approx([1.5**0.5, 0, 1.5**0.5]) and float(labels[0] * labels[2]) < 0
    assert scalar_labels(Regression("t"), torch.full((3,), 2.0))[0].tolist() == [0, 0, 0]
    assert scalar_labels(Regression("t"), torch.full((2,), math.nan))[0].tolist() == []


def test_classes_become_the_direction_in_which_they_differ_most() -> None:
    labels, kept = scalar_labels(Classification("t", classes=3), torch.tensor([0, 0, 1, 1, -1]))
    assert kept.tolist() == [True] * 4 + [False]
    assert labels.abs().numpy() == pytest.approx([1] * 4)
    assert float(labels[0]) == pytest.approx(float(labels[1])) == pytest.approx(-float(labels[2]))


def test_maps_become_their_first_principal_component() -> None:
    far = torch.tensor([1.0, 2.0, 3.0, 6.0])[:, None, None, None].expand(4, 1, 2, 3).clone()
    far[0, 0, 0, 0] = 255.0  # Without a label: it counts as the mean of its place.
    labels, _ = scalar_labels(Depth("t"), far)
    numbers = torch.tensor([1.0, 2.0, 3.0, 6.0]) - 3
    assert float(torch.corrcoef(torch.stack([labels, numbers.double()]))[0, 1].abs()) > 0.99
    shape = torch.zeros(2, 2, 2, dtype=torch.int64)
    shape[1] = 1
    shape[:, 0, 0] = 255
    found, kept = scalar_labels(SemanticSegmentation("t", classes=2), shape)
    assert found.abs().numpy() == pytest.approx([1, 1]) and kept.all()


def test_features_are_averaged_over_places() -> None:
    plain = ConstantNetwork({}, (0, 0))
    maps = torch.arange(12.0).view(1, 3, 2, 2)
    assert features_of(plain, maps).tolist() == [[1.5, 5.5, 9.5]]
    assert features_of(plain, torch.ones(2, 3)).dtype == torch.float64


def test_what_has_no_linear_head_is_refused() -> None:
    with pytest.raises(MethodError, match="names none.*Choose a method with one shared trunk"):
        features_of(ConstantNetwork({}, (0, 0)), None)
    boxes = Detection("things", most=3, classes=2)
    with pytest.raises(MethodError, match="things is of the kind detection, which has none. Leave the task out"):
        scalar_labels(boxes, torch.stack([boxes.blank(8, 8)] * 2))
