"""From rows to ``.grad``: views, the light way, several mini-batches, ranks, memory, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import distributed as dist
from torch import nn

from benchmarks.tensor_memory import peak_bytes
from mtlbench import distributed
from mtlbench.balancing import make_balancer
from mtlbench.balancing.gradients import rows as row_lists
from mtlbench.balancing.gradients import update
from mtlbench.balancing.gradients.surgery import Surgery, blend, collect, reduce, write
from mtlbench.balancing.gradients.update import Needs, Update, needs_of
from mtlbench.errors import DivergedError, MethodError
from mtlbench.testing import TOLERANCE, difference, toy_spec, trained
from tests.support.balancers import gramian_of, rows
from tests.support.step_parts import trained_in_fp16

TINY = "tests.support.step_parts:Tiny"
GRAMIAN_RULES = ("pcgrad", "mgda", "cagrad", "upgrad", "nash_mtl")


def parity(spec, pool, folder):
    two = pool.call(trained, spec, str(folder / "two"), world=2)
    assert difference(two[0], two[1]) == 0
    return difference(trained(spec, str(folder / "one")), two[0])


# ---- ranks ----------------------------------------------------------------------------------------------------------


def scattered(scatters):
    """Returns Gramian and direction of rows that differ between ranks; P = 13 is not a multiple of two."""
    rank = dist.get_rank()
    shared = [nn.Parameter(torch.zeros(2, 5).double()), nn.Parameter(torch.zeros(3).double())]
    surgery = Surgery(shared, [[], [], []])
    given = matrix_of_rank(rank)
    losses = {i: (given[i, :10].view(2, 5) * shared[0]).sum() + (given[i, 10:] * shared[1]).sum() for i in range(3)}
    with mock.patch.object(distributed, "scatters", lambda: scatters):
        reduced = reduce(surgery, collect(surgery, losses, None, torch.ones(())), 1.0)
    gramian = reduced.gramian((0, 2))
    direction = blend(reduced, [0.5, 2.0], (0, 2))
    return gramian, torch.cat([tensor.reshape(-1) for tensor in direction])


def matrix_of_rank(rank):
    return torch.randn(3, 13, generator=torch.Generator().manual_seed(rank)).double()


@pytest.mark.parametrize("scatters", [False, True])
def test_scattered_sums_are_sums(scatters, pool):
    mean = (matrix_of_rank(0) + matrix_of_rank(1))[[0, 2]] / 2
    for gramian, direction in pool.call(scattered, scatters):
        torch.testing.assert_close(gramian, gramian_of(mean))
        torch.testing.assert_close(direction, torch.tensor([0.5, 2.0]).double() @ mean)


def trained_scattered(spec, folder, **options):
    with mock.patch.object(distributed, "scatters", lambda: distributed.world_size() > 1):
        return trained(spec, folder, **options)


@pytest.mark.parametrize("name", ["pcgrad", "sdmgrad", "graddrop", "db_mtl"])
def test_training_with_scattered_sums(name, pool, tmp_path):
    spec = toy_spec(TINY, balancer=name, steps=8)
    two = pool.call(trained_scattered, spec, str(tmp_path / "two"), world=2)
    assert difference(two[0], two[1]) == 0
    assert difference(trained(spec, str(tmp_path / "one")), two[0]) <= TOLERANCE


# ---- the light way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 1 << 30])
@pytest.mark.parametrize("name", ["pcgrad", "imtl"])
def test_the_light_way_is_the_plain_way(name, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "CHUNK", chunk)
    plain, light = (
        trained(toy_spec(TINY, balancer=name, steps=8, local={"surgery": way, "regularise": True}), str(tmp_path / way))
        for way in ("plain", "light")
    )
    assert 0 < difference(plain, light) <= TOLERANCE, "equal up to rounding, by another way"


def trained_in_chunks(spec, folder, **options):
    with mock.patch.object(update, "CHUNK", 1):
        return trained(spec, folder, **options)


def test_the_light_way_on_two_ranks(pool, tmp_path):
    spec = toy_spec(TINY, balancer="pcgrad", steps=8, local={"surgery": "light", "regularise": True})
    two = pool.call(trained_in_chunks, spec, str(tmp_path / "two"), world=2)
    assert difference(two[0], two[1]) == 0
    assert difference(trained(spec, str(tmp_path / "one")), two[0]) <= TOLERANCE


def test_the_light_way_is_chosen_above_a_size(monkeypatch):
    trainer = SimpleNamespace(accumulate_grad_batches=1, strategy=None, optimizers=[], precision="32-true")
    shared = [nn.Parameter(torch.zeros(100))]

    def light(hook, **options):
        made = Update(Needs(hook, **options), Surgery(shared, [[], []]), mock.Mock())
        made.settle(trainer)
        return made.needs.light

    assert not light("gradient_weights")
    monkeypatch.setattr(update, "LIGHT_ABOVE", 4 * 2 * 100 - 1)
    assert light("gradient_weights")
    assert not light("combine_gradients") and not light("gradient_weights", batches=3) and not light(None)


# ---- views ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mgda_ub", "aligned_mtl_ub", "gradnorm"])
def test_views_on_two_ranks(name, pool, tmp_path):
    spec = toy_spec("uniform", steps=8)
    spec.method["path"] = spec.method["name"] = name
    assert parity(spec, pool, tmp_path) <= TOLERANCE


class Toy(nn.Module):
    """A trunk of one matrix and two heads; the gradient of everything is known by hand."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.trunk = nn.Parameter(torch.randn(4, 3, generator=generator).double())
        self.heads = nn.ParameterList([nn.Parameter(torch.randn(4, generator=generator).double()) for _ in range(2)])
        self.inputs = torch.randn(5, 3, generator=generator).double()

    def losses(self):
        z = self.inputs @ self.trunk.T
        return z, {i: ((z @ head - i) ** 2).mean() for i, head in enumerate(self.heads)}


@pytest.mark.parametrize("view", ["representation", "last_shared"])
def test_weights_come_from_the_view_and_act_on_the_parameters(view):
    toy, rule = Toy(), make_balancer("mgda")
    owned = [[head] for head in toy.heads]
    made = Update(Needs("gradient_weights", view=view), Surgery([toy.trunk], owned), rule, [toy.trunk])
    z, losses = toy.losses()
    wanted = z if view == "representation" else toy.trunk
    found = torch.stack([torch.autograd.grad(loss, wanted, retain_graph=True)[0].flatten() for loss in losses.values()])
    weights = rule.weights(gramian_of(found))
    trunk = torch.stack([torch.autograd.grad(loss, toy.trunk, retain_graph=True)[0] for loss in losses.values()])
    heads = [torch.autograd.grad(losses[i], head, retain_graph=True)[0] for i, head in enumerate(toy.heads)]
    made.early(losses, None, torch.ones(()).double(), rule._by_hand(found, None, 0), [z])
    torch.testing.assert_close(toy.trunk.grad, torch.tensordot(weights, trunk, 1))
    for head, expected in zip(toy.heads, heads, strict=True):
        torch.testing.assert_close(head.grad, expected)


# ---- heads, mini-batches --------------------------------------------------------------------------------------------


def test_weighted_heads_leave_the_trunk_alone(tmp_path):
    spec = toy_spec(TINY, balancer="pcgrad", steps=1, clip=0.0)
    unit = trained(spec, str(tmp_path))
    spec.method["balancer"]["arguments"]["heads"] = "weighted"
    weighted = trained(spec, str(tmp_path))
    for key in unit:
        same = torch.allclose(unit[key].double(), weighted[key].double(), rtol=1e-12)
        assert same or "heads" in key, key


@pytest.mark.parametrize("heads", ["unit", "weighted"])
def test_weighted_heads_on_two_ranks(heads, pool, tmp_path):
    spec = toy_spec(TINY, balancer="cagrad", steps=6)
    spec.method["balancer"]["arguments"]["heads"] = heads
    assert parity(spec, pool, tmp_path) <= TOLERANCE


def test_three_mini_batches_by_hand():
    """The cross-Gramian comes from the first two, the direction from the third, heads from all."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 2, 4, generator=generator).double()
    shared, head = nn.Parameter(torch.zeros(4).double()), nn.Parameter(torch.zeros(1).double())
    surgery = Surgery([shared], [[head], []])
    surgery.configure(parts=3)
    third = torch.tensor(1 / 3, dtype=torch.float64)  # what Lightning puts on a loss of three micro-batches
    collected = None
    for part in range(3):
        losses = {i: (given[part, i] * shared).sum() for i in range(2)}
        losses[0] = losses[0] + (part + 1.0) * head.sum()
        collected = collect(surgery, losses, None, third, part, before=collected)
    reduced = reduce(surgery, collected, third * 3)
    torch.testing.assert_close(reduced.gramian((0, 1)), given[0] @ given[1].T)
    write(reduced, blend(reduced, [0.25, 2.0], (0, 1)), (0, 1))
    torch.testing.assert_close(shared.grad, torch.tensor([0.25, 2.0]).double() @ given[2])
    torch.testing.assert_close(head.grad, rows(2.0))


# ---- what the framework promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nash_mtl", "gradvac", "db_mtl"])
def test_accumulation(name, tmp_path):
    one, two = (
        trained(toy_spec(TINY, balancer=name, steps=6, ragged=False, accumulate=n), str(tmp_path)) for n in (1, 2)
    )
    gap = difference(*({key: w for key, w in side.items() if key.startswith("network.")} for side in (one, two)))
    # db_mtl is not linear in the losses: log of a micro-batch's mean.
    assert gap <= TOLERANCE if name != "db_mtl" else 1e-6 < gap < 1


@pytest.mark.parametrize("name", ["mgda", "mgda_ub"])
def test_an_overflow_is_skipped(name, tmp_path):
    target = TINY if name == "mgda" else "uniform"
    spec = toy_spec(target, steps=3, precision="32-true", **({"balancer": name} if name == "mgda" else {}))
    if name != "mgda":
        spec.method["path"] = spec.method["name"] = name
    weights, scale = trained_in_fp16(spec, str(tmp_path), scale=2.0**60)
    assert scale < 2.0**60
    assert all(value.isfinite().all() for key, value in weights.items() if key.startswith("network."))


@pytest.mark.parametrize("name", ["db_mtl", "moco", "excess_mtl"])
def test_an_overflow_is_not_remembered(name, tmp_path):
    spec = toy_spec(TINY, balancer=name, steps=6, precision="32-true", ragged=False)
    weights, scale = trained_in_fp16(spec, str(tmp_path), scale=2.0**30)
    assert scale < 2.0**30 and all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "mgda_ub"])
def test_a_step_without_labels_in_fp16(name, tmp_path):
    spec = toy_spec("uniform", steps=4, precision="32-true")
    spec.method["path"] = spec.method["name"] = name
    spec = replace(spec, data={**spec.data, "module": "tests.support.step_parts:Bare"})
    weights, _ = trained_in_fp16(spec, str(tmp_path))
    assert all(value.isfinite().all() for key, value in weights.items() if key.startswith("network."))


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "graddrop", "sdmgrad"])
def test_diagnostics_of_ragged_micro_batches(name, tmp_path):
    spec = toy_spec(TINY, balancer=name, steps=8, accumulate=1 if name == "sdmgrad" else 4)
    plain = trained(spec, str(tmp_path / "plain"))
    spec = replace(spec, local={**spec.local, "diagnose_every": 1})
    assert difference(plain, trained(spec, str(tmp_path / "measured"))) == 0


def test_a_regulariser_on_one_rank_only(pool, tmp_path):
    """Ranks agree on whether there is one before they average it; here it halves, as under plain DDP."""
    two = pool.call(
        trained, toy_spec("tests.support.step_parts:OneSided", balancer="pcgrad", steps=2), str(tmp_path), world=2
    )
    assert difference(two[0], two[1]) == 0


def test_a_regulariser_of_value_zero_counts():
    toy, rule = Toy(), make_balancer("mgda")
    grads = []
    for offset in (0.0, 1.0):
        made = Update(Needs("gradient_weights", light=True), Surgery([toy.trunk], [[h] for h in toy.heads]), rule)
        z, losses = toy.losses()
        extra = (toy.trunk - toy.trunk.detach()).sum() + offset
        made.early(losses, extra, torch.ones(()).double(), rule._by_hand(torch.ones(2, 1), None, 0), [z])
        grads.append(toy.trunk.grad)
    torch.testing.assert_close(*grads)


def test_what_a_rule_remembers_is_not_clipped(tmp_path):
    one, other = (
        trained(
            toy_spec(TINY, balancer=f"tests.support.step_parts:{name}", steps=5, local={"regularise": True}),
            str(tmp_path),
        )
        for name in ("Momentum", "CopiedMomentum")
    )
    assert difference(*({k: v for k, v in w.items() if "network" in k} for w in (one, other))) == 0


def test_the_graph_does_not_outlive_the_backward_pass(tmp_path):
    trained(toy_spec("tests.support.step_parts:Holding", balancer="imtl", steps=2), str(tmp_path))


@pytest.mark.parametrize(("changes", "message"), [
    ({"view": "representations"}, "Unknown view 'representations'.*'representation'"), ({"batches": 3}, "several"),
])  # fmt: skip
def test_needs_that_cannot_be_are_refused(changes, message):
    rule = make_balancer("tests.support.step_parts:Blind")
    for name, value in changes.items():
        setattr(rule, name, value)
    with pytest.raises(MethodError, match=message):
        needs_of(lambda hook: hook == "combine_gradients", rule)


def test_a_compiled_network(tmp_path):
    plain, compiled = (
        trained(toy_spec(TINY, balancer="pcgrad", steps=4, local={"compile": name}), str(tmp_path / (name or "plain")))
        for name in ("", "aot_eager")
    )
    assert difference(plain, compiled) <= TOLERANCE


@pytest.mark.parametrize("name", ["mgda", "graddrop", "db_mtl"])
def test_a_gradient_that_is_not_finite_names_its_task(name, tmp_path):
    with pytest.raises(DivergedError, match="loss or gradient of far was not at step 1"):
        trained(toy_spec("tests.support.step_parts:BadGradient", balancer=name, steps=4), str(tmp_path))


@pytest.mark.parametrize("name", ["gls", "db_mtl"])
def test_a_negative_loss_is_named_where_the_rule_takes_logarithms(name, tmp_path):
    with pytest.raises(DivergedError, match="positive where the rule takes logarithms.* of mean was not at step 0"):
        trained(toy_spec("tests.support.step_parts:NegativeLoss", balancer=name, steps=2), str(tmp_path))


@pytest.mark.parametrize("name", ["tests.support.step_parts:NothingShared", "tests.support.step_parts:PrivateTrunk"])
@pytest.mark.parametrize("balancer", ["pcgrad", "mgda", "graddrop", "db_mtl", "sdmgrad"])
def test_networks_with_little_or_nothing_in_common(name, balancer, pool, tmp_path):
    spec = toy_spec(name, balancer=balancer, steps=4)
    assert parity(spec, pool, tmp_path) <= TOLERANCE


def test_nothing_shared_is_training_apart(tmp_path):
    """Without shared parameters every rule with unit heads is the plain sum."""
    weights = [
        trained(toy_spec("tests.support.step_parts:NothingShared", balancer=name, steps=4), str(tmp_path))
        for name in ("uniform", "pcgrad", "graddrop")
    ]
    assert difference(weights[0], weights[1]) <= TOLERANCE and difference(weights[0], weights[2]) <= TOLERANCE


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_of_both_ways():
    """At most (T + 1) · P in the plain way, 2 · P and a chunk in the light one, and one block of either."""
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    heads = [[nn.Parameter(torch.ones(256))] for _ in range(5)]
    size = 4 * sum(p.numel() for p in layers.parameters())
    made = {}
    for light in (False, True):
        surgery = Surgery(list(layers.parameters()), heads)
        rule = make_balancer("mgda")
        update_ = Update(Needs("gradient_weights", light=light), surgery, rule)
        ctx = rule._by_hand(torch.ones(5, 1), None, 0)

        def step(update_=update_, surgery=surgery, ctx=ctx, light=light):
            z = layers(torch.ones(2, 256))
            losses = {i: (z * head[0]).square().sum() for i, head in enumerate(heads)}
            if light:
                update_.early(losses, None, torch.ones(()), ctx, [])
            else:
                update_.late(collect(surgery, losses, None, torch.ones(())), 1.0, ctx)
            for p in layers.parameters():
                p.grad = None

        with mock.patch.object(update, "CHUNK", size), mock.patch.dict(row_lists.BLOCK, {"cpu": 1 << 14}):
            made[light] = peak_bytes(step)
    slack = 3 * 4 * (1 << 14) + 50_000  # a block and what is made of it, and activations
    assert made[False] <= 6 * size + slack
    assert made[True] <= 3 * size + slack


# ---- refusals -------------------------------------------------------------------------------------------------------


class FSDPStrategy:
    """Stands for Lightning's."""


FUSED = [torch.optim.AdamW([nn.Parameter(torch.ones(2))], fused=True)]


@pytest.mark.parametrize(("needs", "changes", "message"), [
    (Needs("gradient_weights"), {"strategy": FSDPStrategy()}, "cuts parameters into shards"),
    (Needs("gradient_weights"), {"precision": "16-mixed", "optimizers": FUSED}, "fused"),
    (Needs("gradient_weights", view="representation"), {"accumulate_grad_batches": 2}, "trainer.accumulate=1"),
    (Needs("gradient_weights", view="last_shared"), {}, "last_shared_parameters"),
    (Needs("combine_gradients"), {"way": "light"}, "Gramian of all shared parameters"),
])  # fmt: skip
def test_what_cannot_be_exact_is_refused(needs, changes, message):
    trainer = {"accumulate_grad_batches": 1, "strategy": None, "optimizers": [], "precision": "32-true", **changes}
    made = Update(needs, Surgery([nn.Parameter(torch.ones(2))], [[], []]), mock.Mock())
    with pytest.raises(MethodError, match=message):
        made.settle(SimpleNamespace(**trainer), trainer.pop("way", "auto"))


def test_a_rule_on_losses_takes_any_trainer():
    trainer = SimpleNamespace(
        accumulate_grad_batches=4, strategy=FSDPStrategy(), optimizers=FUSED, precision="16-mixed"
    )
    Update(Needs(), Surgery([nn.Parameter(torch.ones(2))], [[], []]), mock.Mock()).settle(trainer)


def test_a_network_without_a_representation_is_refused(tmp_path):
    with pytest.raises(MethodError, match="Outputs.representation"):
        trained(toy_spec("task_moe", balancer="mgda_ub", steps=1), str(tmp_path))
