"""Aligned-MTL-UB: the rule of Aligned-MTL on the representation's Gramian."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import gramian_of
from tests.support.jacobians import jacobian


@pytest.mark.parametrize("alignment", ["min", "median", "rmse"])
def test_the_rule_is_that_of_aligned_mtl(alignment):
    gramian = gramian_of(jacobian("plain", 5))
    pair = [make_balancer(name, alignment=alignment).weights(gramian) for name in ("aligned_mtl_ub", "aligned_mtl")]
    assert torch.equal(*pair)


def test_the_weights_align():
    # M = [[1, -1], [-1, 2]] has eigenvalues (3 ± √5) / 2; B = √λ_min M^{-½}, and w = B 1.
    gramian = torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double()
    inner = make_balancer("aligned_mtl_ub").weights(gramian)
    assert_close(inner, torch.tensor([1.105573, 0.829180]).double(), atol=1e-6, rtol=0)
    # ‖d‖² = wᵀ M w = λ_min ‖1‖² where the rank is full.
    assert (inner @ gramian @ inner).item() == pytest.approx(2 * (3 - 5**0.5) / 2)


def test_it_looks_at_the_representation():
    assert make_balancer("aligned_mtl_ub").view == "representation"
    assert make_balancer("aligned_mtl").view == "parameters"
    with pytest.raises(MethodError, match="alignment"):
        make_balancer("aligned_mtl_ub", alignment="mean")
