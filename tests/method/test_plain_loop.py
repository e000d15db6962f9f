"""A run against a loop in plain PyTorch that is written here: scales, counts, gradients, clipping, rates, conflicts.

Comparisons of one process with two ranks, or of one batch with two micro-batches, miss what is wrong on both sides.
The loop has whole batches of one process, one optimiser, and nothing of the training step.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from mtlbench.balancing import Balancer
from mtlbench.data import Collate
from mtlbench.method.optimisers import set_apart
from mtlbench.runs.store import RunFolder
from mtlbench.testing import TOLERANCE, ToyData, difference, toy_spec, trained
from mtlbench.training.build import build_with_network
from tests.support.step_parts import Tiny

HERE, STEPS, BATCH, WARMUP, LR = "tests.method.test_plain_loop", 6, 8, 2, 0.01
NAMES = list(ToyData.TASKS)
FIXED = [1.0, 0.5, 2.0, 0.25]


class Mean(Balancer):
    """A geometric mean, not linear in the losses, of those that are there."""

    def combine_losses(self, losses, ctx):
        return losses.log().mean().exp()


class Sized(Balancer):
    """Weights that depend on the size of gradients, and not on their directions alone."""

    def gradient_weights(self, gramian, ctx):
        return 1 / (1 + gramian.diagonal())


class SizedHeads(Sized):
    """The same, for heads too."""

    heads = "weighted"


class Cubed(Balancer):
    """A rule on the Jacobian that is not linear in it."""

    def combine_gradients(self, jacobian, ctx):
        return jacobian.sum(0) ** 3


def run(rule, accumulate=1, diagnose=0):
    """Returns a run of six steps; in the third and fourth, task ``shape`` lacks half of its labels, then all."""
    spec = toy_spec(
        "tests.support.step_parts:Tiny",
        steps=STEPS,
        balancer=rule,
        accumulate=accumulate,
        local={"diagnose_every": diagnose},
    )
    if rule == "fixed":
        spec.method["balancer"]["arguments"]["weights"] = FIXED
    return replace(spec, optimiser={**spec.optimiser, "schedule": "cosine", "warmup": WARMUP, "weight_decay": 0.1})


def combined(rule, losses, active):
    """Returns the loss that a loss rule minimises."""
    if rule == f"{HERE}:Mean":
        return torch.stack(losses).log().mean().exp()
    return sum((FIXED[i] if rule == "fixed" else 1.0) * loss for i, loss in zip(active, losses, strict=True))


def balanced(rule, jacobian):
    """Returns direction and weights of heads for a Jacobian."""
    ones = [1.0] * len(jacobian)
    if rule == f"{HERE}:Cubed":
        return jacobian.sum(0) ** 3, ones
    weights = 1 / (1 + jacobian.square().sum(1))
    return weights @ jacobian, weights.tolist() if rule == f"{HERE}:SizedHeads" else ones


def rate(step):
    """Returns the learning rate: linear over two steps, then half a cosine over the rest."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def losses_of(network, tasks, samples):
    """Returns the scaled mean losses of the tasks with a label, by index."""
    batch = Collate(tasks)(samples)
    predictions = network(batch["image"], list(tasks)).predictions
    return {
        i: (2.0 if name == "far" else 1.0) * task.loss(predictions[name], batch["targets"][name]) / count
        for i, (name, task) in enumerate(tasks.items())
        if (count := batch["counts"][name])
    }


def plain_loop(rule, spec):
    """Trains as the documentation says; returns the weights, and per step tasks, losses, Jacobian and direction."""
    network = build_with_network(spec)[0].network
    data = ToyData(size=STEPS * BATCH, batch_size=BATCH)
    samples, seen = data.samples("train"), []
    shared, heads = list(network.encoder.parameters()), [list(network.heads[name].parameters()) for name in NAMES]
    every = [*shared, *itertools.chain(*heads)]
    matrices, vectors = [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LR)
    for step in range(STEPS):
        batch = [samples[i] for i in range(step * BATCH, (step + 1) * BATCH)]
        parts = spec.trainer["accumulate"]
        cut = [batch[n * BATCH // parts : (n + 1) * BATCH // parts] for n in range(parts)]
        optimiser.zero_grad()
        rows, means = {}, []
        for part in cut:
            losses = losses_of(network, ToyData.TASKS, part)
            means.append({i: float(loss.detach()) for i, loss in losses.items()})
            if rule in ("uniform", "fixed", f"{HERE}:Mean"):
                (combined(rule, list(losses.values()), list(losses)) / parts).backward(retain_graph=True)
            for i, loss in losses.items():
                found = torch.autograd.grad(loss / parts, [*shared, *heads[i]], retain_graph=True)
                rows[i] = [a + b for a, b in zip(rows[i], found, strict=True)] if i in rows else list(found)
        jacobian = torch.stack([torch.cat([g.flatten() for g in rows[i][: len(shared)]]) for i in sorted(rows)])
        direction = jacobian.sum(0)
        if rule not in ("uniform", "fixed", f"{HERE}:Mean"):
            direction, weights = balanced(rule, jacobian)
            for p, part in zip(shared, direction.split([p.numel() for p in shared]), strict=True):
                p.grad = part.view_as(p)
            for i, weight in zip(sorted(rows), weights, strict=True):
                for p, g in zip(heads[i], rows[i][len(shared) :], strict=True):
                    p.grad = weight * g
        torch.nn.utils.clip_grad_norm_(every, 0.5)
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.step()
        seen.append((sorted(rows), means, jacobian, direction))
    return {f"network.{name}": value for name, value in network.state_dict().items()}, seen


class TwoRates(Tiny):
    """Heads learn at a rate of their own."""

    def parameter_groups(self):
        heads = list(self.network.heads.parameters())
        return set_apart([{"params": list(self.network.parameters()), "lr": 0.25}], heads, lr=4.0)


class Told(Balancer):
    """The sum; keeps what each step is told."""

    seen: list = []

    def combine_losses(self, losses, ctx):
        Told.seen.append((ctx.step, ctx.epoch, ctx.lr, ctx.sizes, ctx.active))
        return losses.sum()


def test_a_rule_is_told_step_epoch_tasks_and_the_rate_of_the_first_group(tmp_path):
    """48 samples in batches of 24: two steps per epoch; the rate halves over its two steps of warm-up."""
    Told.seen.clear()
    spec = toy_spec(f"{HERE}:TwoRates", balancer=f"{HERE}:Told", steps=4, batch_size=24, tasks=["far", "kind"])
    trained(replace(spec, optimiser={**spec.optimiser, "warmup": 2}), str(tmp_path))
    sizes, active = (6 * 3 * 9, 6, 6, 6), (0, 1)
    assert Told.seen == [
        (0, 0, 0.125, sizes, active),
        (1, 0, 0.25, sizes, active),
        (2, 1, 0.25, sizes, active),
        (3, 1, 0.25, sizes, active),
    ]


RULES = ("uniform", "fixed", *(f"{HERE}:{name}" for name in ("Mean", "Sized", "SizedHeads", "Cubed")))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_one_process_is_the_plain_loop(rule, accumulate, tmp_path):
    spec = run(rule, accumulate)
    found = {k: v for k, v in trained(spec, str(tmp_path)).items() if k.startswith("network.")}
    assert difference(found, plain_loop(rule, spec)[0]) <= TOLERANCE


@pytest.mark.parametrize(("rule", "accumulate"), [("fixed", 2), (f"{HERE}:Mean", 1), (f"{HERE}:SizedHeads", 2)])
def test_two_ranks_are_the_plain_loop(rule, accumulate, pool, tmp_path):
    spec = run(rule, accumulate)
    expected = plain_loop(rule, spec)[0]
    for weights in pool.call(trained, spec, str(tmp_path), world=2):
        assert difference({k: v for k, v in weights.items() if k.startswith("network.")}, expected) <= TOLERANCE


@pytest.mark.parametrize("rule", ["uniform", f"{HERE}:Sized", f"{HERE}:Cubed"])
def test_the_record_of_a_run_is_that_of_the_plain_loop(rule, tmp_path):
    """Losses, rates, norms, cosines and conflicts of every step, and the share of steps with a conflict."""
    spec = run(rule, diagnose=1)
    trained(spec, str(tmp_path))
    folder = RunFolder(tmp_path, spec.run_id).path
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "lr" in row]
    expected_steps, conflicts = plain_loop(rule, spec)[1], []
    assert [len(active) for active, *_ in expected_steps] == [4, 4, 4, 3, 4, 4]
    for step, (row, (active, (means,), jacobian, direction)) in enumerate(zip(rows, expected_steps, strict=True)):
        names = [NAMES[i] for i in active]
        assert row["step"] == step + 1 and row["lr"] == pytest.approx(rate(step + 1), abs=1e-12)
        losses = {f"loss/{NAMES[i]}": value / (2.0 if NAMES[i] == "far" else 1.0) for i, value in means.items()}
        assert {key: value for key, value in row.items() if key.startswith("loss/")} == pytest.approx(losses)
        norms = jacobian.norm(dim=1).tolist()
        assert [row[f"gradient/norm/{name}"] for name in names] == pytest.approx(norms)
        cosine = torch.nn.functional.normalize(jacobian) @ torch.nn.functional.normalize(jacobian).T
        pairs = list(itertools.combinations(range(len(names)), 2))
        expected = [float(cosine[i, j]) for i, j in pairs]
        found = [row[f"gradient/cosine/{names[i]}|{names[j]}"] for i, j in pairs]
        assert found == pytest.approx(expected, abs=1e-9)
        assert row["gradient/conflicts"] == pytest.approx(sum(value < 0 for value in expected) / len(pairs))
        conflicts.append(any(value < 0 for value in expected))
        alike = [2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2) for i, j in pairs]
        assert row["gradient/similarity"] == pytest.approx(sum(alike) / len(pairs))
        singular = torch.linalg.svdvals(torch.nn.functional.normalize(jacobian))
        assert row["gradient/condition"] == pytest.approx(float(singular[0] / singular[-1]), rel=1e-6)
        turn = torch.nn.functional.cosine_similarity(direction, jacobian.sum(0), dim=0).clamp(max=1).acos().rad2deg()
        assert row["gradient/turn"] == pytest.approx(float(turn), abs=1e-3)
    assert json.loads((folder / "result.json").read_text())["conflict_share"] == sum(conflicts) / STEPS
