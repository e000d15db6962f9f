"""RCM: banks and modulators that start as the plain network, and tasks that cannot disturb each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.networks.rcm import Modulated, convolutions_of, principal_basis
from mtlbench.runs.store import RunFolder
from mtlbench.testing import check_network, toy_spec, trained
from tests.support import network_checks as arch
from tests.support.architectures import TASKS, dense, images, made, network


def calibrated(kind="cnn", **options):
    net = network("rcm", kind, **options)
    net.start_from_responses([images(4), images(2)])
    return net


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_it_starts_as_the_plain_network(kind, normalised):
    plain = dense(kind).eval()
    wanted = plain(images(), list(TASKS)).predictions
    for net in (network("rcm", kind, normalised=normalised), calibrated(kind, normalised=normalised)):
        found = net.eval()(images(), list(TASKS)).predictions
        for task in TASKS:
            assert_close(found[task], wanted[task], atol=1e-4, rtol=0)


def test_banks_hold_uncorrelated_responses():
    net, responses = calibrated(), {}
    name, bank = max(net.banks.items(), key=lambda item: item[1].out_channels * (item[1].groups == 1))
    bank.register_forward_hook(lambda m, i, output: responses.setdefault(name, []).append(output))
    encoder = net.eval().encoders["depth"]
    for batch in (images(4), images(2)):
        encoder(encoder.normalise(batch))
    found = torch.cat([r.double().movedim(1, 0).flatten(1) for r in responses[name]], 1)
    covariance = torch.cov(found, correction=0)
    variances = covariance.diagonal()
    assert (covariance - torch.diag(variances)).abs().max() < 1e-5 * variances.max()
    assert (variances.diff() <= 1e-6 * variances.max()).all() and variances[0] > 2 * variances[-1]


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_everything_that_is_trained_has_one_owner(kind):
    net = calibrated(kind)
    assert check_network(net, TASKS) is None and net.shared_parameters(list(TASKS)) == []
    arch.assert_partition(net, TASKS, (16, 24))
    arch.assert_subset_is_alike(net, TASKS, (16, 24))
    assert not any(p.requires_grad for p in net.banks.parameters())
    state = {name for name in net.state_dict() if name.endswith("direction")}
    assert len(state) == len(net.banks) * len(TASKS)
    again = network("rcm", kind)
    again.load_state_dict(net.state_dict())
    twin = copy.deepcopy(net)
    assert twin.encoders["depth"].get_submodule(next(iter(net.banks)).replace("/", "."))._bank[0] in list(
        twin.banks.values()
    )


def test_training_one_task_leaves_the_others_bit_identical():
    net = calibrated().train()
    with torch.no_grad():
        before = net.eval()(images(), ["depth", "kind"]).predictions
    frozen = {name: p.clone() for name, p in net.banks.named_parameters()}
    optimiser = torch.optim.AdamW(net.task_parameters("normals"), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        net.train()(images(4), ["normals"]).predictions["normals"].square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        after = net.eval()(images(), ["depth", "kind"]).predictions
    assert all(torch.equal(before[task], after[task]) for task in before)
    assert all(torch.equal(p, frozen[name]) for name, p in net.banks.named_parameters())
    assert all(p.grad is None for p in (*net.banks.parameters(), *net.task_parameters("depth")))


def test_tasks_trained_together_are_those_trained_alone(tmp_path):
    """The bank is frozen, so a step on the sum of losses is a step on each of them."""

    def weights(*tasks):
        return trained(toy_spec("rcm", steps=4, clip=0, tasks=list(tasks)), str(tmp_path / "-".join(tasks)))

    both, alone = weights("far", "mean"), weights("mean")
    own = [name for name in alone if ".mean." in name]
    assert len(own) > 20
    for name in own:
        assert_close(both[name], alone[name], rtol=0, atol=1e-10)
    changed = [n for n in own if n.endswith("direction") and not torch.equal(both[n], both[n.replace("mean", "far")])]
    assert changed


def test_rules_on_gradients_are_the_plain_sum(tmp_path):
    """No trainable parameter is shared, so no two tasks have a gradient that a rule could change."""

    def found(balancer):
        spec = toy_spec("rcm", steps=2, balancer=balancer, tasks=["kind", "far"])
        return trained(spec, str(tmp_path / str(balancer)))

    plain = found(None)
    for balancer in ("pcgrad", "trimmed_mean"):
        ruled = found(balancer)
        assert all(torch.equal(value, plain[name]) for name, value in ruled.items() if name.startswith("network."))


def test_training_flops_count_the_calibration(tmp_path):
    def flops(**arguments):
        spec = toy_spec("rcm", steps=3, tasks=["kind", "far"], ragged=False, arguments=arguments)
        trained(spec, str(tmp_path))
        return RunFolder(tmp_path, spec.run_id).result()["cost"]["training_flops"]

    none, one, two, three = flops(response_init=False), *(flops(calibration=n) for n in (1, 2, 3))
    assert three - two == two - one > 0  # Of a batch, beside the rotation of the banks.
    assert one - none == pytest.approx(two - one, rel=0.15)


def test_a_modulator_by_hand():
    bank = nn.Conv2d(1, 2, 1, bias=False).requires_grad_(requires_grad=False)
    bank.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    layer = Modulated(bank, torch.tensor([0.5, 0.0]), normalised=True)
    layer.start(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    assert layer.scale.tolist() == [5, 2]
    x = torch.full((1, 1, 1, 1), 2.0)
    assert_close(layer(x).flatten(), torch.tensor([3 * 2 + 4 * 4 + 0.5, 2 * 4.0]))
    with torch.no_grad():
        layer.direction.mul_(7)  # Only the direction counts.
        layer.scale[1] = 1.0
    assert_close(layer(x).flatten(), torch.tensor([22.5, 4.0]))


def test_the_basis_is_orthogonal_and_empty_directions_do_not_depend_on_rounding():
    torch.manual_seed(0)
    responses = torch.randn(3, 50, dtype=torch.float64)
    mix = torch.randn(6, 3, dtype=torch.float64)
    covariance = torch.cov(mix @ responses)
    basis = principal_basis(covariance)
    assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64))
    rotated = basis.T @ covariance @ basis
    assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-12, rtol=0)
    assert (rotated.diagonal()[:3].diff() < 0).all() and rotated.diagonal()[3:].abs().max() < 1e-12
    noise = 1e-15 * torch.randn(6, 6, dtype=torch.float64)
    assert_close(principal_basis(covariance + noise + noise.T), basis, atol=1e-10, rtol=0)
    assert torch.equal(principal_basis(torch.zeros(3, 3, dtype=torch.float64)), torch.eye(3, dtype=torch.float64))


def test_what_cannot_be_is_refused():
    with pytest.raises(MethodError, match="this encoder has no convolution.*resnet18") as caught:
        convolutions_of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)))
    assert "\n" not in str(caught.value)
    with pytest.raises(MethodError, match="at least 1 batch"):
        made("rcm", calibration=0)
