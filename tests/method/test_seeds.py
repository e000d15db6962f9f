"""What each rank, step and micro-batch draws from, computed from the documented formula and not by the code."""

from __future__ import annotations

import hashlib

import torch

from mtlbench.balancing import Balancer
from mtlbench.testing import toy_spec, trained
from tests.support.step_parts import Tiny

SEED, STEPS, MICRO_BATCHES = 3, 2, 2
STEP_SEED, RULE_SEED = 1940585112034002771, 7631071393850620892


class Drawing(Balancer):
    """The sum; keeps the seeds of its generator by step."""

    seen: list = []

    def combine_losses(self, losses, ctx):
        Drawing.seen.append((ctx.step, ctx.generator.initial_seed()))
        return losses.sum()


class Seeded(Tiny):
    """Keeps the seed of the global generator after every forward pass."""

    seen: list = []

    def regularisation(self, outputs, batch):
        Seeded.seen.append((self.trainer.global_step, self._state.micro_index, torch.initial_seed()))
        return {}


def seeds_of(spec, folder, world):
    Seeded.seen.clear()
    Drawing.seen.clear()
    trained(spec, folder, world=world)
    return Seeded.seen, Drawing.seen


def seed(*parts):
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def test_dropout_depends_on_step_micro_batch_and_rank_and_draws_of_a_rule_on_the_step_alone(pool, tmp_path):
    target, rule = "tests.method.test_seeds:Seeded", "tests.method.test_seeds:Drawing"
    spec = toy_spec(target, balancer=rule, steps=STEPS, accumulate=MICRO_BATCHES, seed=SEED)
    order = [(step, micro) for step in range(STEPS) for micro in range(MICRO_BATCHES)]
    answers = [seeds_of(spec, str(tmp_path / "one"), 1), *pool.call(seeds_of, spec, str(tmp_path / "two"), 2)]
    for rank, (network, drawn) in zip((0, 0, 1), answers, strict=True):
        assert network == [(step, micro, seed("step", SEED, step, micro, rank)) for step, micro in order]
        assert drawn == [(step, seed("method", SEED, step)) for step, _ in order]


def test_seeds_as_numbers(tmp_path):
    """Of one step of one run, so that the formula cannot change on both sides."""
    target, rule = "tests.method.test_seeds:Seeded", "tests.method.test_seeds:Drawing"
    network, drawn = seeds_of(toy_spec(target, balancer=rule, steps=1, seed=SEED), str(tmp_path), 1)
    assert (network, drawn) == ([(0, 0, STEP_SEED)], [(0, RULE_SEED)])
