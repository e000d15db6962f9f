"""Gates that choose k experts."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.networks.mmoe import DSelectGate, selector_entropy, smooth_step
from tests.support.architectures import (
    TASKS,
    check_ownership,
    check_predictions,
    check_with_balancer,
    images,
    made,
    network,
)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_ownership_and_predictions(kind):
    net = network("dselect_k", kind)
    check_ownership(net)
    check_predictions(net)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_smooth_step(gamma):
    t = gamma * torch.tensor([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 3.0], dtype=torch.float64)
    wanted = torch.tensor([0.0, 0.0, 0.15625, 0.5, 0.84375, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(smooth_step(t, gamma), wanted)
    x = t[2:5].requires_grad_()
    (slope,) = torch.autograd.grad(smooth_step(x, gamma).sum(), x)
    torch.testing.assert_close(slope, torch.tensor([1.125, 1.5, 1.125], dtype=torch.float64) / gamma)


def gate(bits, weights=(0.0, 0.0), experts=8):
    """Returns a gate whose selectors have these logits of bits, and these logits of their own for x = (1, 1, ...)."""
    found = DSelectGate(3, experts, len(bits), 1.0)
    with torch.no_grad():
        found.choose.weight.zero_()
        found.choose.bias.copy_(torch.tensor(bits).flatten())
        found.weigh.weight.copy_(torch.tensor(weights)[:, None].expand(-1, 3) / 3)
    return found


def test_a_choice_by_hand():
    # Bits from the least: 1 + 4 = 5, and 2; softmax(ln 3, 0) = 3/4, 1/4.
    weights = gate([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], (math.log(3), 0.0))(torch.ones(2, 3, 2, 1))
    wanted = torch.zeros(2, 8)
    wanted[:, 5], wanted[:, 2] = 0.75, 0.25
    torch.testing.assert_close(weights, wanted)


def test_undecided_bits_share_by_hand():
    weights = gate([[0.0, 1.0, -1.0], [0.25, -1.0, -1.0]], (0.0, 0.0))(torch.ones(1, 3, 1, 1))[0]
    torch.testing.assert_close(weights, torch.tensor([0.078125, 0.421875, 0.25, 0.25, 0, 0, 0, 0]))


def test_at_most_k_experts_have_a_weight_once_decided_and_gradients_stay_finite():
    net, image = network("dselect_k", experts=8, top_k=3).double(), images(16)
    with torch.no_grad():
        for found in net.gates.values():
            found.choose.weight.normal_(std=500)
    outputs = net(image, list(TASKS))
    for task, weights in outputs.statistics["gates"].items():
        torch.testing.assert_close(weights.sum(1), torch.ones(16, dtype=weights.dtype))
        assert ((weights > 0).sum(1) <= 3).all() and (weights > 0).any(0).sum() > 3
        selectors = net.gates[task].selectors(outputs.representation[:, 0])
        loss = outputs.predictions[task].square().sum() + selector_entropy(selectors)
        for p in net.gates[task].parameters():
            assert torch.autograd.grad(loss, p, retain_graph=True)[0].isfinite().all()


def test_entropy_of_half_decided_selectors_has_a_finite_gradient():
    found = gate([[0.25, 1.0, -1.0], [0.0, 0.0, 0.0]]).double()
    loss = selector_entropy(found.selectors(torch.ones(1, 3, 1, 1, dtype=torch.float64)))
    (gradient,) = torch.autograd.grad(loss, found.choose.bias)
    # d/dp of H(p) is ln((1 - p) / p), at p = S(1/4) = 0.84375 with slope 1.125; one half is a maximum.
    assert gradient[0].item() == pytest.approx(1.125 * math.log(0.15625 / 0.84375))
    torch.testing.assert_close(gradient[1:], torch.zeros(5, dtype=torch.float64))


def test_entropy_by_hand():
    uniform, chosen = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    selectors = torch.stack([torch.stack([uniform, chosen]), torch.stack([uniform, uniform])])
    assert selector_entropy(selectors).item() == pytest.approx(1.5 * math.log(4), abs=1e-6)


def test_the_regulariser_is_the_entropy_over_tasks_and_makes_gates_choose():
    method, image = made("dselect_k", entropy=0.5), images()
    outputs = method.network(image, ["depth", "kind"])
    (value,) = method.regularisation(outputs, {}).values()
    # Two tasks, two selectors each, and bits near one half: four experts alike.
    assert value.item() == pytest.approx(0.5 * 4 * math.log(4), rel=1e-2)
    gates = [p for g in method.network.gates.values() for p in g.parameters()]
    optimiser = torch.optim.Adam(gates, lr=0.05)
    for _ in range(40):
        (loss,) = method.regularisation(method.network(image, list(TASKS)), {}).values()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * value.item()


@pytest.mark.parametrize("balancer", ["pcgrad", "gradnorm"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("dselect_k", balancer, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 6}, "2, 4, 8.*Found 6"),
        ({"experts": 1, "top_k": 1}, "Found 1"),
        ({"top_k": 5}, "top_k=5, experts=4"),
        ({"top_k": 0}, "top_k=0"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"gamma": float("nan")}, "gamma must be positive"),
        ({"entropy": -1.0}, "entropy must be >= 0"),
    ],
)
def test_values_outside_their_range_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        network("dselect_k", **options)
