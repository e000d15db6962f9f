"""MGDA-UB: the rule of MGDA on the representation's Gramian."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import gramian_of, rows
from tests.support.jacobians import jacobian


@pytest.mark.parametrize("normalise", ["none", "l2", "loss", "loss+"])
def test_the_rule_is_that_of_mgda(normalise):
    gramian, losses = gramian_of(jacobian("plain", 5)), rows(1.0, 2.0, 3.0, 4.0, 5.0)
    pair = [make_balancer(name, normalise=normalise).weights(gramian, losses) for name in ("mgda_ub", "mgda")]
    assert torch.equal(*pair)


def test_weights_of_a_representation():
    # Two samples with one feature each: flattened, z_1 = (1, 0) and z_2 = (-1, 1) conflict. Summed over the samples
    # they would be 1 and 0, and all weight would go to the second.
    rule = make_balancer("mgda_ub", scale="mean")
    assert_close(rule.weights(gramian_of(rows((1.0, 0.0), (-1.0, 1.0)))), rows(0.6, 0.4))
    assert_close(rule.weights(gramian_of(rows([1.0], [0.0]))), rows(0.0, 1.0))


def test_it_looks_at_the_representation():
    assert make_balancer("mgda_ub").view == "representation"
    assert make_balancer("mgda").view == "parameters"
    with pytest.raises(MethodError, match="MGDAUB: Unknown normalise"):
        make_balancer("mgda_ub", normalise="L2")
