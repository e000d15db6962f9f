"""ASTMT: modulation, and a network that differs between tasks by it alone."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MethodError, SuiteError
from mtlbench.methods.architectures.astmt import ASTMT
from mtlbench.networks.astmt import Modulation
from mtlbench.networks.dense import DenseNetwork
from mtlbench.tasks import Depth
from tests.support import network_checks as arch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trained(net):
    """Makes tasks differ, as training would."""
    for p in net.modulations.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("size", arch.SIZES)
@pytest.mark.parametrize("kind", arch.MODELS)
def test_shapes(kind, size):
    net = trained(arch.network(ASTMT, arch.model(kind, size)))
    arch.assert_shapes(net, arch.TASKS, size)
    arch.assert_subset_is_alike(net, arch.TASKS, size)


@pytest.mark.parametrize("kind", arch.MODELS)
def test_ownership_is_the_partition_that_gradients_show(kind):
    net = arch.network(ASTMT, arch.model(kind))
    arch.assert_partition(net, arch.TASKS)
    owned = [sum(p.numel() for p in net.modulations[task].parameters()) for task in arch.TASKS]
    assert len(set(owned)) == 1 and all(net.task_modules(task)[0] is net.heads[task] for task in arch.TASKS)


def test_precisions_and_cuts():
    net = trained(arch.network(ASTMT, arch.model("vit")))
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


@pytest.mark.parametrize("kind", arch.MODELS)
def test_it_starts_as_the_plain_shared_network(kind):
    section = arch.model(kind)
    net = arch.network(ASTMT, section).eval()
    plain = DenseNetwork(arch.TASKS, **section).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "modulations" not in name})
    with torch.no_grad():
        found, expected = (n(arch.images(), list(arch.TASKS)).predictions for n in (net, plain))
        for task in arch.TASKS:
            torch.testing.assert_close(found[task], expected[task])
        trained(net)
        changed = net(arch.images(), list(arch.TASKS)).predictions
    assert not any(torch.allclose(changed[task], expected[task], atol=1e-3) for task in arch.TASKS)


def test_swapping_tasks_changes_only_task_parameters():
    tasks = {"near": Depth("near"), "far": Depth("far")}
    net = trained(arch.network(ASTMT, arch.model("vit"), tasks)).eval()
    with torch.no_grad():
        before = net(arch.images(), ["near", "far"]).predictions
        assert not torch.allclose(before["near"], before["far"], atol=1e-3)
        near, far = (torch.nn.ModuleList(net.task_modules(task)) for task in tasks)
        state = {name: value.clone() for name, value in near.state_dict().items()}
        near.load_state_dict(far.state_dict())
        far.load_state_dict(state)
        after = net(arch.images(), ["near", "far"]).predictions
    assert torch.equal(after["near"], before["far"]) and torch.equal(after["far"], before["near"])


def test_every_modulation_counts():
    net = trained(arch.network(ASTMT, arch.model("cnn")))
    net(arch.images(), ["depth"]).predictions["depth"].square().sum().backward()
    assert len(net.modulations["depth"]) == 4 + 1
    for modulation in net.modulations["depth"]:
        assert modulation.adapter.weight.grad.any() and modulation.excite.gate[2].weight.grad.any()


def test_modulation_by_hand():
    modulation = Modulation(2, 16)
    x = torch.randn(2, 2, 3, 5)
    assert torch.equal(modulation(x), x)
    modulation.adapter.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[..., None, None]
    modulation.excite.gate[2].bias.data = torch.tensor([0.0, math.log(3)])
    # y = (2 a, a + b), gates 1/2 and 3/4, doubled
    torch.testing.assert_close(modulation(x), torch.stack((2 * x[:, 0], 1.5 * (x[:, 0] + x[:, 1])), 1))


def test_the_first_stage_runs_once():
    net, calls = arch.network(ASTMT, arch.model("vit")), []
    for block in net.encoder.trunk.model.blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    net(arch.images(), list(arch.TASKS))
    assert [calls.count(block) for block in net.encoder.trunk.model.blocks] == [1, 4, 4, 4]


def test_what_cannot_be_is_refused():
    with pytest.raises(MethodError, match="reduction.*>= 1"):
        arch.network(ASTMT, arch.model("vit"), reduction=0)
    with pytest.raises(SuiteError, match="stage by stage"):
        arch.network(ASTMT, {"encoder": "hrnet_w18_small", "image_size": [64, 96]})
