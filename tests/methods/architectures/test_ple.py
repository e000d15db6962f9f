"""Levels of shared and private experts."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
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
def test_predictions(kind):
    check_predictions(network("ple", kind))


@pytest.mark.parametrize("private", [0, 1, 2])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ownership(levels, private):
    check_ownership(network("ple", levels=levels, private=private, shared=2))


def test_one_level_without_private_experts_is_mmoe():
    one, other, image = network("ple", levels=1, shared=3, private=0), network("mmoe", experts=3), images()
    (level,) = one.levels
    level.shared.load_state_dict(other.experts.state_dict())
    level.gates.load_state_dict(other.gates.state_dict())
    wanted = other.eval()(image, list(TASKS)).predictions
    for task, prediction in one.eval()(image, list(TASKS)).predictions.items():
        torch.testing.assert_close(prediction, wanted[task])


def by_hand(net, image):
    """Returns predictions of two levels, one image after the other and written out."""
    first, second = net.levels
    found = {task: [] for task in TASKS}
    for one in image.split(1):
        x = net.shared_map(one)

        def weights(gate, x):
            return (gate.linear.weight @ x.mean((0, 2, 3))).softmax(0)

        experts = [first.shared[0](x)] + [first.private[t][0](x) for t in TASKS]
        common = sum(w * e for w, e in zip(weights(first.shared_gate, x), experts, strict=True))
        for i, task in enumerate(TASKS):
            g = weights(first.gates[task], x)
            own = g[0] * experts[0] + g[1] * experts[1 + i]
            g = weights(second.gates[task], own)
            own = g[0] * second.shared[0](common) + g[1] * second.private[task][0](own)
            found[task].append(net.heads[task](own))
    return {task: torch.cat(rows) for task, rows in found.items()}


def test_two_levels_equal_the_rule_written_out():
    net, image = network("ple").double().eval(), images()
    with torch.no_grad():  # gates of different opinion
        for level in net.levels:
            for name, p in level.named_parameters():
                if "gate" in name:
                    p.mul_(10)
    wanted = by_hand(net, image)
    for task, prediction in net(image, list(TASKS)).predictions.items():
        torch.testing.assert_close(prediction, wanted[task])


@pytest.mark.parametrize(("levels", "reaches"), [(1, False), (2, True)])
def test_private_experts_reach_other_tasks_through_the_shared_gate_only(levels, reaches):
    net, image = network("ple", levels=levels).eval(), images()
    before = net(image, ["kind"]).predictions["kind"]
    with torch.no_grad():
        net.levels[0].private["depth"][0][0].weight.mul_(-1)
    assert torch.allclose(before, net(image, ["kind"]).predictions["kind"]) != reaches


def test_starts_as_the_dense_network_and_what_a_task_owns_does_not_depend_on_others():
    net, plain, one = network("ple"), dense(), network("ple", tasks={"kind": TASKS["kind"]})
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    same = [key for key in one.state_dict() if ".kind." in key]
    assert len(same) == 10 and all(torch.equal(state[key], one.state_dict()[key]) for key in same)
    experts = [net.levels[i].private[t][0][0].weight for i in range(2) for t in TASKS]
    assert len({w.sum().item() for w in experts}) == 6


@pytest.mark.parametrize("balancer", ["pcgrad", "uncertainty", "gradnorm"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("ple", balancer, tmp_path)


def test_rules_on_the_representation_are_refused(tmp_path):
    with pytest.raises(MethodError, match="Outputs.representation"):
        check_with_balancer("ple", "mgda_ub", tmp_path)


@pytest.mark.parametrize("options", [{"levels": 0}, {"shared": 0}, {"private": -1}])
def test_values_outside_their_range_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(MethodError, match=f"at least.*{name}={value}"):
        network("ple", **options)
