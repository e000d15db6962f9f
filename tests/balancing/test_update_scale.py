"""The size of what a rule is given and of what it writes, against gradients of the whole batch in one autograd call.

Most rules do not see the scale of a Gramian, and two ranks may be wrong in the same way as one process. Here the
rule's weights depend on the scale, and expected values come from neither `Update` nor `Surgery`.
"""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import nn

from mtlbench.balancing import Balancer
from mtlbench.balancing.gradients.surgery import Surgery, collect
from mtlbench.balancing.gradients.update import Needs, Update
from mtlbench.method import MTLMethod
from mtlbench.testing import toy_spec, trained
from tests.support.step_parts import Tiny, trained_in_fp16

WAYS = ("late", "light", "representation", "last_shared")
SAMPLES = 6


class Sized(Balancer):
    """Weights a task by 1 / (1 + ‖g‖²), and keeps the Gramians that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def gradient_weights(self, gramian, ctx):
        self.seen.append(gramian.clone())
        return 1 / (1 + gramian.diagonal())


class Net:
    """A trunk of two layers, of which a view sees the last, and one head for each of two tasks."""

    def __init__(self):
        def draw(*shape):
            return torch.randn(*shape, generator=generator).double()

        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Parameter(draw(4, 3)), nn.Parameter(draw(4, 4))
        self.heads = [nn.Parameter(draw(4)) for _ in range(2)]
        self.inputs = draw(SAMPLES, 3)

    def sums(self, samples):
        """Returns the representation, and the sum of each task's loss over some of the samples."""
        z = (self.inputs[samples] @ self.first.T).tanh() @ self.last.T
        return z, {i: ((z @ head - i) ** 2).sum() for i, head in enumerate(self.heads)}

    def flat_gradients(self, wanted, samples=slice(None)):
        """Returns the gradients (2, n) of the mean losses of the whole batch."""
        z, sums = self.sums(samples)
        places = [z] if wanted == "z" else wanted
        found = [torch.autograd.grad(total / SAMPLES, places, retain_graph=True) for total in sums.values()]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in found])


def updated(way, factor, heads="unit"):
    """Returns the Gramian that the rule saw, and the gradients of trunk and heads; each rank has its own samples."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    net, rule, factor = Net(), Sized(), torch.tensor(factor).double()
    view = "parameters" if way in ("late", "light") else way
    needs = Needs("gradient_weights", view=view, light=way == "light", heads=heads)
    surgery = Surgery([net.first, net.last], [[head] for head in net.heads])
    update = Update(needs, surgery, rule, [net.last])
    z, sums = net.sums(slice(rank, None, world))
    losses = {i: world * total / SAMPLES for i, total in sums.items()}
    ctx = rule._by_hand(torch.ones(2, 1), None)
    if way == "late":
        update.late(collect(surgery, losses, None, factor), factor, ctx)
        factor = torch.ones(())
    else:  # Gradients keep the factor, which the scaler takes off later.
        update.early(losses, None, factor, ctx, [z])
    trunk = torch.cat([net.first.grad.flatten(), net.last.grad.flatten()]) / factor
    return rule.seen[0], trunk, torch.stack([head.grad for head in net.heads]) / factor


def check(way, found, heads="unit"):
    net = Net()
    whole = net.flat_gradients([net.first, net.last])
    seen = {"representation": "z", "last_shared": [net.last]}.get(way)
    rows = whole if seen is None else net.flat_gradients(seen)
    gramian, trunk, found_heads = found
    torch.testing.assert_close(gramian, rows @ rows.T)
    weights = 1 / (1 + rows.square().sum(1))
    torch.testing.assert_close(trunk, weights @ whole)
    for i, head in enumerate(net.heads):
        total = net.sums(slice(None))[1][i] / SAMPLES
        own = torch.autograd.grad(total, head)[0]
        torch.testing.assert_close(found_heads[i], weights[i] * own if heads == "weighted" else own)


@pytest.mark.parametrize("factor", [1.0, 256.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_rule_is_given_gramians_of_mean_losses(way, factor):
    check(way, updated(way, factor))


@pytest.mark.parametrize("way", WAYS)
def test_weighted_heads_have_the_weight_of_their_task(way):
    check(way, updated(way, 256.0, "weighted"), "weighted")


@pytest.mark.parametrize("way", WAYS)
def test_a_rule_on_two_ranks_is_given_gramians_of_the_whole_batch(way, pool):
    for found in pool.call(updated, way, 256.0):
        check(way, found)


class Hearing(Tiny):
    """Keeps the first Gramian of a run, and the gradients on the shared parameters of which it should be made."""

    found: list = []

    def backward(self, loss):
        if not Hearing.found:
            found = [
                torch.cat([g.flatten() for g in torch.autograd.grad(row, self.surgery.shared, retain_graph=True)])
                for row in self._state.rows.values()
            ]
            Hearing.found.append(torch.stack(found).double())
        MTLMethod.backward(self, loss)

    def gradient_weights(self, gramian, ctx):
        Hearing.found.append(gramian)
        return 1 / (1 + gramian.diagonal())


@pytest.mark.parametrize("surgery", ["plain", "light"])
@pytest.mark.parametrize("half", [False, True])
def test_a_run_gives_a_rule_the_gramian_of_unscaled_losses(half, surgery, tmp_path):
    Hearing.found.clear()
    spec = toy_spec(
        "tests.balancing.test_update_scale:Hearing", steps=1, precision="32-true", local={"surgery": surgery}
    )
    (trained_in_fp16 if half else trained)(spec, str(tmp_path))
    rows, gramian = Hearing.found
    torch.testing.assert_close(gramian, rows @ rows.T, rtol=2e-2 if half else 1e-5, atol=1e-4)


class OnRepresentation(Sized):
    """Looks at the representation."""

    view = "representation"

    def gradient_weights(self, gramian, ctx):
        Viewed.found[ctx.step]["gramian"] = gramian
        return super().gradient_weights(gramian, ctx)


class OnLastShared(OnRepresentation):
    """Looks at the last shared layer."""

    view = "last_shared"


class Viewed(MTLMethod):
    """The usual network; keeps the gradients of each task, and those that the optimiser is given."""

    found: list = []

    def backward(self, loss):
        step, places = self._state, self.network.last_shared_parameters()
        wanted = step.representation if self.balancer.view == "representation" else places

        def rows(of):
            every = [torch.autograd.grad(row, of, retain_graph=True) for row in step.rows.values()]
            return torch.stack([torch.cat([g.flatten() for g in row]) for row in every]).double()

        Viewed.found.append({"view": rows(wanted), "shared": rows(self.surgery.shared)})
        super().backward(loss)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        Viewed.found[-1]["grad"] = torch.cat([p.grad.flatten().double() for p in self.surgery.shared])


@pytest.mark.parametrize(("precision", "close"), [("64-true", 1e-9), ("fp16", 2e-2), ("bf16-mixed", 8e-2)])
@pytest.mark.parametrize("view", ["OnRepresentation", "OnLastShared"])
def test_a_run_gives_a_rule_on_a_view_the_gramian_of_unscaled_losses(view, precision, close, tmp_path):
    """Against rows of autograd on the losses as they are; low precision rounds, it does not scale."""
    Viewed.found.clear()
    half = precision == "fp16"
    spec = toy_spec(
        "tests.balancing.test_update_scale:Viewed",
        balancer=f"tests.balancing.test_update_scale:{view}",
        steps=2,
        precision="32-true" if half else precision,
    )
    (trained_in_fp16 if half else trained)(spec, str(tmp_path))
    assert len(Viewed.found) == 2
    for step in Viewed.found:
        expected = step["view"] @ step["view"].T
        assert (step["gramian"] - expected).abs().max() <= close * expected.abs().max()
        direction = (1 / (1 + step["gramian"].diagonal())) @ step["shared"]
        assert (step["grad"] - direction).abs().max() <= close * direction.abs().max()
