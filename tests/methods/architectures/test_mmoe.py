"""Experts mixed by one gate per task."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.networks.mmoe import SoftmaxGate, mix
from tests.support.architectures import (
    MODELS,
    TASKS,
    check_ownership,
    check_predictions,
    check_with_balancer,
    dense,
    images,
    network,
)


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_and_predictions(kind):
    net = network("mmoe", kind)
    check_ownership(net)
    check_predictions(net)


def test_a_mixture_by_hand():
    experts = torch.tensor([[1.0, 5.0], [2.0, -2.0]])[:, :, None, None, None].expand(2, 2, 3, 2, 4)
    mixed = mix(torch.tensor([[0.25, 0.75], [1.0, 0.0]]), experts)
    assert mixed.shape == (2, 3, 2, 4)
    assert mixed[0].unique().tolist() == [4.0] and mixed[1].unique().tolist() == [2.0]


def test_a_gate_by_hand():
    gate = SoftmaxGate(2, 3)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
    x = torch.zeros(2, 2, 1, 2)
    x[0, 0] = torch.tensor([0.0, torch.tensor(2.0).log()])  # mean ln(2) / 2: logits 0, ln 2, 0
    torch.testing.assert_close(gate(x), torch.tensor([[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]]))


def test_a_uniform_gate_takes_the_mean_of_the_experts():
    net, image = network("mmoe", experts=4).eval(), images()
    with torch.no_grad():
        for gate in net.gates.values():
            gate.linear.weight.zero_()
    shared = net.shared_map(image)
    mean = sum(expert(shared) for expert in net.experts) / 4
    for task, prediction in net(image, list(TASKS)).predictions.items():
        torch.testing.assert_close(prediction, net.heads[task](mean))


def test_gates_sum_to_one_and_differ_between_tasks_and_images():
    gates = network("mmoe")(images(), list(TASKS)).statistics["gates"]
    for weights in gates.values():
        assert weights.shape == (2, 3) and (weights > 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
        assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(gates["depth"], gates["kind"])


def test_a_gate_moves_its_own_task_only():
    net, image = network("mmoe").eval(), images()
    before = net(image, list(TASKS)).predictions
    with torch.no_grad():
        net.gates["depth"].linear.weight.mul_(-30)
    after = net(image, list(TASKS)).predictions
    assert not torch.allclose(before["depth"], after["depth"])
    assert torch.equal(before["normals"], after["normals"]) and torch.equal(before["kind"], after["kind"])


def test_shared_parameters_reach_all_heads_through_the_representation():
    net = network("mmoe").double()
    outputs, shared = net(images(), list(TASKS)), net.shared_parameters(list(TASKS))
    for prediction in outputs.predictions.values():
        loss = prediction.square().sum()
        (at,) = torch.autograd.grad(loss, outputs.representation, retain_graph=True)
        through = torch.autograd.grad(outputs.representation, shared, at, retain_graph=True)
        for a, b in zip(through, torch.autograd.grad(loss, shared, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b)


def test_starts_as_the_dense_network_and_gates_do_not_depend_on_other_tasks():
    net, plain, one = network("mmoe"), dense(), network("mmoe", tasks={"kind": TASKS["kind"]})
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert all(torch.equal(state[key], value) for key, value in one.state_dict().items())


@pytest.mark.parametrize("balancer", ["pcgrad", "uncertainty", "gradnorm", "mgda_ub"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("mmoe", balancer, tmp_path)


def test_no_expert_is_refused():
    with pytest.raises(MethodError, match="experts must be at least 1. Found 0"):
        network("mmoe", experts=0)
