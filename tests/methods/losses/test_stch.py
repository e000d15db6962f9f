"""Smooth Tchebycheff scalarisation: warm-up, nadir and smooth maximum."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchjd.scalarization
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, rows

E = math.e


def made(tasks=2, nadir=None, **arguments):
    """Returns a rule; with a nadir, one that has gone through the epoch that gives it."""
    rule = make_balancer("stch", **arguments)
    rule.configure(tasks)
    if nadir is not None:
        rule.double().after_step(context(rows(*nadir), epoch=rule.warmup_epochs))
    return rule.double()


def combined(rule, losses, epoch=5, active=None):
    """Returns weights and value in an epoch."""
    return loss_weights(rule.combine_losses, context(losses, epoch=epoch, active=active))


def test_golden_with_mu_one():
    weights, value = combined(made(nadir=(1.0, 1.0), scale="raw"), rows(1.0, E))
    assert weights.tolist() == pytest.approx([0.537883, 0.537883], abs=1e-6)
    assert value.item() == pytest.approx(2 * math.log(1 + E))


def test_golden_with_small_mu():
    # Nearly T times the maximum of ln(L / z), which is 1.
    weights, value = combined(made(nadir=(1.0, 1.0), scale="raw", mu=0.1), rows(1.0, E))
    assert value.item() == pytest.approx(2.0000091, abs=1e-7)
    assert weights.tolist() == pytest.approx([2 / (1 + math.exp(10)), 2 / E / (1 + math.exp(-10))])
    weights, value = combined(made(nadir=(1.0, 1.0), scale="raw", mu=1e-6), rows(1.0, E))
    assert value.item() == pytest.approx(2) and weights.tolist() == pytest.approx([0, 2 / E])


def test_the_nadir_divides_the_losses():
    # μ = 1: c_i = T (1 / z_i) / Σ_j L_j / z_j = 2 · (1/2, 1/10) / (3/2 + 5/10).
    weights, _ = combined(made(nadir=(2.0, 10.0), scale="raw"), rows(3.0, 5.0))
    assert weights.tolist() == pytest.approx([0.5, 0.1])
    # On sum scale they no longer depend on the losses: 2 · (1/2, 1/10) / (1/2 + 1/10).
    for losses in (rows(3.0, 5.0), rows(0.01, 90.0)):
        assert combined(made(nadir=(2.0, 10.0)), losses)[0].tolist() == pytest.approx([5 / 3, 1 / 3])


def test_direction_by_hand():
    rule = make_balancer("stch")
    # By hand it is always the first epoch: weights 2 · (1, 1/3) / (4/3).
    assert_close(rule.direction(rows(*CONFLICT), rows(1.0, 3.0)), rows(1.0, 0.5))


@pytest.mark.parametrize("tasks", [2, 3, 40])
@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_it_is_torchjd_on_logarithms(tasks, mu):
    generator = torch.Generator().manual_seed(tasks)
    nadir, losses = (torch.rand(2, tasks, generator=generator, dtype=torch.float64) + 0.1).unbind()
    leaf = losses.clone().requires_grad_()
    reference = torchjd.scalarization.STCH(mu, torch.ones(tasks).double(), nadir.log())
    value = tasks * reference(leaf.log())
    value.backward()
    weights, found = combined(made(tasks, nadir.tolist(), mu=mu, scale="raw"), losses)
    assert_close(found, value)
    assert_close(weights, leaf.grad)
    # Sum scale: the same direction, with weights that sum to the number of tasks.
    assert_close(combined(made(tasks, nadir.tolist(), mu=mu), losses)[0], tasks * leaf.grad / leaf.grad.sum())


@pytest.mark.parametrize("scale", ["sum", "raw"])
def test_the_warm_up_is_scale_invariant(scale):
    losses, other = rows(0.2, 1.0, 30.0), make_balancer("scale_invariant", scale=scale)
    expected = loss_weights(other.combine_losses, context(losses))
    for epoch in (0, 4):
        found = combined(made(3, (1.0, 2.0, 3.0), scale=scale), losses, epoch=epoch)
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])
    assert not torch.allclose(combined(made(3, (1.0, 2.0, 3.0), scale=scale), losses, epoch=5)[0], expected[0])


def test_the_nadir_is_the_mean_of_one_epoch():
    rule = made(2)
    for epoch, losses in ((3, (90.0, 90.0)), (4, (1.0, 6.0)), (4, (3.0, 2.0)), (5, (70.0, 70.0))):
        rule.after_step(context(rows(*losses), epoch=epoch))
    assert_close(rule.nadir(), rows(2.0, 4.0))
    early = made(2, warmup_epochs=0)
    early.after_step(context(rows(1.0, 2.0), epoch=0))
    early.after_step(context(rows(9.0, 9.0), epoch=1))
    assert_close(early.nadir(), rows(1.0, 2.0))
    assert combined(early, rows(1.0, 2.0), epoch=1)[0].tolist() == pytest.approx([4 / 3, 2 / 3])


def test_an_absent_task_counts_no_step():
    rule = made(3)
    rule.after_step(context(rows(1.0, 2.0, 3.0), epoch=4))
    rule.after_step(context(rows(3.0, 9.0), epoch=4, active=(0, 2)))
    assert_close(rule.nadir(), rows(2.0, 2.0, 6.0))
    # Later on it does not take part, and the others are as if alone.
    alone = combined(made(2, (2.0, 6.0), scale="raw"), rows(1.0, 5.0))
    found = combined(rule_raw := made(3, (2.0, 2.0, 6.0), scale="raw"), rows(1.0, 5.0), active=(0, 2))
    assert_close(found[0], alone[0])
    assert rule_raw.steps.tolist() == [1.0, 1.0, 1.0]


def test_a_task_without_a_nadir_counts_as_the_mean_of_the_others():
    rule = made(3, scale="raw")
    rule.after_step(context(rows(1.0, 1.0), epoch=4, active=(0, 2)))
    assert rule.nadir().isnan().tolist() == [False, True, False]
    # ln(L / z) is 0 and 2, hence 1 for task 1 whatever its loss.
    for loss in (0.01, 7.0):
        weights, value = combined(rule, rows(1.0, loss, E**2))
        total = 1 + E + E**2
        assert value.item() == pytest.approx(3 * math.log(total))
        assert weights.tolist() == pytest.approx([3 / total, 3 * E / total / loss, 3 / total])
    # With no nadir at all every ratio is 0, as if the warm-up went on.
    assert_close(combined(made(2, scale="raw"), rows(1.0, 4.0))[0], rows(1.0, 0.25))
    assert_close(combined(rule, rows(4.0), active=(1,))[0], rows(0.25))


def test_tasks_may_change_places_and_units():
    losses, nadir, order = rows(0.2, 1.0, 30.0), (1.0, 2.0, 3.0), [2, 0, 1]
    first = combined(made(3, nadir, mu=0.5), losses)[0]
    assert_close(combined(made(3, [nadir[i] for i in order], mu=0.5), losses[order])[0], first[order])
    gradients, units = torch.arange(-6.0, 6.0).view(3, 4).double(), rows(1.0, 1000.0, 0.1)
    plain = combined(made(3, nadir, mu=0.5, scale="raw"), losses)[0] @ gradients
    scaled = combined(made(3, (rows(*nadir) * units).tolist(), mu=0.5, scale="raw"), losses * units)[0]
    assert_close(scaled @ (units[:, None] * gradients), plain)


@pytest.mark.parametrize("epoch", [0, 5])
def test_one_task_keeps_its_gradient(epoch):
    assert combined(made(1, (2.0,)), rows(7.0), epoch=epoch)[0].item() == pytest.approx(1)
    assert combined(made(1, (2.0,), scale="raw"), rows(8.0), epoch=epoch)[0].item() == pytest.approx(1 / 8)


def test_single_precision_with_losses_far_apart():
    rule = make_balancer("stch", mu=0.01)
    rule.configure(2)
    rule.after_step(context(torch.tensor([1e-3, 1e3]), epoch=4))
    weights, value = combined(rule, torch.tensor([1e3, 1e-3]))
    assert weights.tolist() == pytest.approx([2.0, 0.0]) and value.isfinite()


def test_a_resumed_rule_continues_bit_for_bit():
    rule, other = made(), made()
    rule.after_step(context(rows(1.0, 3.0), epoch=4))
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    for each in (rule, other):
        each.after_step(context(rows(0.3, 2.0), epoch=4))
    assert torch.equal(*(combined(each, rows(0.7, 0.9))[0] for each in (rule, other)))
    assert_close(other.nadir(), rows(0.65, 2.5))
    assert not list(rule.parameters())


def test_a_run_stopped_in_the_epoch_of_the_nadir(tmp_path):
    from mtlbench.testing import difference, toy_spec, trained

    # Six steps are one epoch of the toy data.
    def spec(epochs):
        return toy_spec("stch", steps=10, arguments={"warmup_epochs": epochs, "mu": 0.2}, tasks=["kind", "mean"])

    straight = trained(spec(0), str(tmp_path / "one"))
    assert trained(spec(0), str(tmp_path / "two"), stop_at=4) is None
    assert difference(straight, trained(spec(0), str(tmp_path / "two"))) == 0
    assert straight["balancer.steps"].max() == 6
    assert difference(straight, trained(spec(1), str(tmp_path / "three"))) > 1e-6


def test_what_is_refused():
    for arguments in ({"mu": 0.0}, {"mu": float("nan")}, {"mu": float("inf")}, {"mu": -1.0}):
        with pytest.raises(MethodError, match="stch: mu must be above 0"):
            make_balancer("stch", **arguments)
    with pytest.raises(MethodError, match="stch: warmup_epochs must be at least 0. Found -1"):
        make_balancer("stch", warmup_epochs=-1)
    with pytest.raises(MethodError, match="stch: Unknown scale 'mean'.*raw, sum"):
        make_balancer("stch", scale="mean")
    with pytest.raises(MethodError, match="must be above 0"):
        make_balancer("stch").direction(torch.eye(2), torch.tensor([0.0, 1.0]))
