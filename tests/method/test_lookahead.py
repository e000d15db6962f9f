"""Look-ahead, preview of an optimiser's step, and steps on which a rule does not look at gradients."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

from mtlbench.balancing import Balancer, make_balancer
from mtlbench.balancing.losses import reduce_losses
from mtlbench.errors import MethodError
from mtlbench.method import step
from mtlbench.method.forward import label_counts, loss_sums, scales
from mtlbench.method.lookahead import moved
from mtlbench.runs.store import RunFolder
from mtlbench.testing import TOLERANCE, difference, toy_spec, trained
from mtlbench.training import checkpoint
from tests.support.step_parts import Blind, Tiny, trained_in_fp16

TINY = "tests.support.step_parts:Tiny"


def identical(one, other):
    return difference(one, other) == 0


def test_what_was_moved_is_put_back_also_after_an_error():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before, places = copy.deepcopy(network.state_dict()), [p.data_ptr() for p in network.parameters()]
    shared = [network[0].weight]
    random, seen = torch.random.get_rng_state(), []
    with pytest.raises(ValueError, match="stop"), moved(network, shared, [torch.ones_like(shared[0])]):
        network(torch.randn(2, 3, 5, 4))
        seen.append(shared[0].detach().clone())
        raise ValueError("stop")
    assert torch.equal(seen[0], before["0.weight"] + 1)
    assert identical(network.state_dict(), before)
    assert places == [p.data_ptr() for p in network.parameters()]
    assert torch.equal(torch.random.get_rng_state(), random)


# ---- in a run -------------------------------------------------------------------------------------------------------


class Trying(Blind):
    """As `Blind`, and tries the step of every task; keeps what it saw."""

    seen: list = []

    def combine_gradients(self, jacobian, ctx):
        before, random = ctx.lookahead(None), torch.random.get_rng_state()
        still = ctx.lookahead(torch.zeros_like(jacobian[0]))
        after = torch.stack([ctx.lookahead(ctx.preview(row)) for row in jacobian])
        last = ctx.lookahead(ctx.preview(jacobian[0]), ctx.active[-1:])
        assert torch.equal(torch.random.get_rng_state(), random)
        Trying.seen.append((ctx, before, still, after, last))
        return super().combine_gradients(jacobian, ctx)


def pair(folder, train=trained, target=TINY, **options):
    """Returns the weights of `Blind` and `Trying`, and the states of their optimisers."""
    Trying.seen.clear()
    found = []
    for name in ("tests.support.step_parts:Blind", "tests.method.test_lookahead:Trying"):
        spec = toy_spec(target, balancer=name, **options)
        spec = replace(spec, optimiser={**spec.optimiser, **spec.local.get("optimiser", {})})
        weights = train(spec, str(folder))
        result = json.loads((RunFolder(folder, spec.run_id).path / "result.json").read_text())
        found.append((weights[0] if isinstance(weights, tuple) else weights, result["optimiser_sha256"]))
    (one, state), (other, other_state) = found
    return identical(one, other) and state == other_state


@pytest.mark.parametrize("options", [
    {"arguments": {"norm": "batch", "dropout": 0.2}},
    {"arguments": {"dropout": 0.2}, "local": {"optimiser": {"name": "sgd"}}},
    {"precision": "bf16-mixed"}, {"accumulate": 2},
], ids=["batch norm", "momentum", "bf16", "accumulation"])  # fmt: skip
def test_trying_leaves_no_trace(options, tmp_path):
    assert pair(tmp_path, steps=5, **options)
    assert len(Trying.seen) == 5
    for ctx, before, still, after, last in Trying.seen:
        known = before.isfinite()
        if not options.get("accumulate"):
            # The very losses of the step, draws of dropout included.
            assert known.all() and torch.equal(before, ctx.losses)
        torch.testing.assert_close(still, before, rtol=1e-6, atol=0, equal_nan=True)
        assert (after != before)[:, known].all()
        torch.testing.assert_close(last, after[0, -1:], equal_nan=True)


def test_trying_leaves_no_trace_in_fp16_and_sees_what_full_precision_sees(tmp_path):
    options = {"steps": 3, "precision": "32-true", "ragged": False}
    assert pair(tmp_path / "full", **options)
    full = [after for *_, after, _ in Trying.seen]
    assert pair(tmp_path / "half", trained_in_fp16, **options)
    half = [after for *_, after, _ in Trying.seen]
    assert len(full) == len(half) == 3
    torch.testing.assert_close(half[0], full[0], rtol=0.02, atol=0)
    assert not torch.equal(half[0], full[0])


@pytest.mark.parametrize(("target", "compiler"), [("task_moe", ""), (TINY, "aot_eager")])
def test_trying_leaves_no_trace_in_other_networks(target, compiler, tmp_path):
    """Statistics on the routing of experts are those of the step alone; a compiled network sees the change."""
    assert pair(tmp_path, target=target, steps=3, local={"compile": compiler})
    assert all((after != before).all() for _, before, _, after, _ in Trying.seen)


class Predicting(Tiny):
    """Notes how far a step ends from where the preview of its direction says, and what a look-ahead misses."""

    gaps: list = []

    def combine_gradients(self, jacobian, ctx):
        direction = jacobian.sum(0)
        change = ctx.preview(direction)
        self.goal = self.flat() + change
        self.reference(ctx, change)
        return direction

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.surgery.shared])

    def reference(self, ctx, change):
        """Moves a copy of the network by hand."""
        network, names = copy.deepcopy(self.network), list(self.tasks)
        shared = network.shared_parameters(names)
        with torch.no_grad():
            for parameter, part in zip(shared, change.split([p.numel() for p in shared]), strict=True):
                parameter += part.view_as(parameter)
            sums = torch.stack(loss_sums(network, self.tasks, self._state.batch, names))
        found = reduce_losses(sums, label_counts(self.tasks, self._state.batch), scales(self.tasks))
        assert found.active == ctx.active or self.trainer.accumulate_grad_batches > 1
        expected = (found.means() * torch.tensor(scales(self.tasks)))[list(ctx.active)]
        torch.testing.assert_close(ctx.lookahead(change), expected.to(change), rtol=1e-9, atol=0, equal_nan=True)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        Predicting.gaps.append(float((self.flat() - self.goal).abs().max()))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_goes_where_its_preview_says(name, accumulate, tmp_path):
    Predicting.gaps.clear()
    spec = toy_spec("tests.method.test_lookahead:Predicting", steps=6, clip=0.0, accumulate=accumulate)
    spec = replace(spec, optimiser={**spec.optimiser, "name": name, "weight_decay": 0.1, "schedule": "cosine"})
    trained(spec, str(tmp_path))
    assert len(Predicting.gaps) == 6 and max(Predicting.gaps) < 1e-14


class Afterwards(Balancer):
    """Looks at the losses when the step is done, without a change and with one of zero."""

    seen: list = []

    def after_step(self, ctx):
        zero = torch.zeros(sum(ctx.sizes), dtype=ctx.losses.dtype)
        Afterwards.seen.append((ctx.losses, ctx.lookahead(None), ctx.lookahead(zero)))


def test_after_a_step_the_losses_are_new(tmp_path):
    Afterwards.seen.clear()
    trained(toy_spec(TINY, balancer="tests.method.test_lookahead:Afterwards", steps=4), str(tmp_path))
    assert len(Afterwards.seen) == 4
    for before, after, again in Afterwards.seen:
        assert torch.equal(after, again) and (after != before).all()


class Following(Balancer):
    """Weighs gradients by what previews and look-aheads say: wrong on one rank, wrong on all."""

    def combine_gradients(self, jacobian, ctx):
        gains = [ctx.lookahead(ctx.preview(g)) + ctx.lookahead(ctx.descent(g)) for g in jacobian]
        gains = torch.stack(gains).nan_to_num().sum(1)
        return (1 + gains / gains.max() + ctx.lr) @ jacobian


@pytest.mark.parametrize("accumulate", [1, 2])
def test_looks_ahead_over_ranks(accumulate, pool, tmp_path):
    spec = toy_spec(TINY, balancer="tests.method.test_lookahead:Following", steps=8, accumulate=accumulate)
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)
    assert identical(two[0], two[1])
    assert difference(trained(spec, str(tmp_path / "one")), two[0]) <= TOLERANCE


def test_looks_ahead_over_streams(pool, tmp_path):
    spec = toy_spec(TINY, balancer="tests.method.test_lookahead:Following", steps=3)
    spec = replace(spec, data={**spec.data, "module": "tests.support.step_parts:Streams"})
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)
    assert difference(trained(spec, str(tmp_path / "one")), two[0]) <= TOLERANCE


# ---- steps that are not due -----------------------------------------------------------------------------------------


class Seldom(Balancer):
    """The sum, looked at in every third step; remembers which steps these were."""

    def configure(self, tasks):
        super().configure(tasks)
        self.register_buffer("looked", torch.zeros(40, dtype=torch.int64), persistent=False)

    def due(self, step):
        return step % 3 == 1

    def combine_gradients(self, jacobian, ctx):
        self.looked[ctx.step] += 1
        return jacobian.sum(0)

    def summary(self):
        return {"looked": self.looked.nonzero().flatten().tolist()}


class Never(Seldom):
    """Is never due."""

    def due(self, step):
        return False

    def combine_gradients(self, jacobian, ctx):
        raise AssertionError


class Doubling(Seldom):
    """Twice the sum where it is due."""

    def combine_gradients(self, jacobian, ctx):
        return 2 * jacobian.sum(0)


def network(weights):
    return {key: value for key, value in weights.items() if key.startswith("network.")}


def runs(tmp_path, *names, **options):
    return [
        network(trained(toy_spec(TINY, balancer=n, **options), str(tmp_path / n.rpartition(":")[2]))) for n in names
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rule_that_is_not_due_is_the_plain_sum(accumulate, tmp_path):
    names = ("uniform", *(f"tests.method.test_lookahead:{name}" for name in ("Never", "Seldom", "Doubling")))
    with mock.patch.object(step, "collect", side_effect=step.collect) as collected:
        plain, never, seldom, double = runs(
            tmp_path, *names, steps=8, accumulate=accumulate, local={"regularise": True}
        )
        # Two rules, due at steps 1, 4 and 7; nothing is taken apart elsewhere.
        assert collected.call_count == 2 * 3 * accumulate
    assert identical(plain, never)
    assert difference(plain, seldom) <= TOLERANCE and difference(plain, double) > 1e-3
    (folder,) = (tmp_path / "Seldom").iterdir()
    assert json.loads((folder / "summary.json").read_text()) == {"looked": [1, 4, 7]}


@pytest.mark.parametrize("name", ["Seldom", "Never", "Doubling"])
def test_a_rule_that_is_seldom_due_on_two_ranks(name, pool, tmp_path):
    spec = toy_spec(TINY, balancer=f"tests.method.test_lookahead:{name}", steps=9, local={"regularise": True})
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)
    assert identical(two[0], two[1])
    assert difference(trained(spec, str(tmp_path / "one")), two[0]) <= TOLERANCE


def test_a_rule_that_is_seldom_due_in_fp16(tmp_path):
    spec = toy_spec(TINY, balancer="uniform", steps=6, precision="32-true")
    plain, scale = trained_in_fp16(spec, str(tmp_path / "plain"))
    seldom = toy_spec(TINY, balancer="tests.method.test_lookahead:Seldom", steps=6, precision="32-true")
    found, other = trained_in_fp16(seldom, str(tmp_path / "seldom"))
    assert scale == other and difference(network(plain), network(found)) < 1e-4


def test_every_step_can_be_measured(tmp_path):
    spec = toy_spec(TINY, balancer="tests.method.test_lookahead:Doubling", steps=3, local={"diagnose_every": 1})
    trained(spec, str(tmp_path))
    lines = (RunFolder(tmp_path, spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "gradient/conflicts" in row]
    weights = [{round(v, 6) for k, v in row.items() if k.startswith("gradient/weight/")} for row in rows]
    assert weights == [{1.0}, {2.0}, {1.0}]


def test_by_hand_a_rule_that_is_not_due_is_the_sum():
    rule = Doubling()
    found = [rule.direction(torch.eye(2)).tolist() for _ in range(3)]
    assert found == [[1, 1], [2, 2], [1, 1]]


def test_by_hand_a_look_ahead_is_given():
    rule, losses = make_balancer("it_mtl"), torch.ones(2)
    with pytest.raises(MethodError, match=r"lookahead=losses_after"):
        rule.direction(torch.eye(2), losses)
    asked = []
    rule.direction(torch.eye(2), losses, lookahead=lambda change: (asked.append(change.tolist()), losses)[1], lr=0.5)
    assert asked == [[-0.5, -0.5], [-0.5, 0.0], [0.0, -0.5]]


def test_a_summary_is_that_of_the_finished_run(tmp_path):
    """What is summed up lies in buffers: a run that was stopped tells the same."""
    spec = toy_spec("inter_task_affinity", steps=8, arguments={"every": 2})
    whole = trained(spec, str(tmp_path / "whole"))
    assert trained(spec, str(tmp_path / "cut"), stop_at=5) is None
    newest = checkpoint.load(checkpoint.newest(RunFolder(tmp_path / "cut", spec.run_id).path))
    assert newest["state_dict"]["balancer.counts"].sum() > 0
    assert identical(whole, trained(spec, str(tmp_path / "cut")))
    one, other = ((tmp_path / at / spec.run_id / "summary.json").read_text() for at in ("whole", "cut"))
    assert one == other and json.loads(one)["probes"][0][0] == 4
