"""IT-MTL: the choice by hand, against brute force, among present tasks, and where look-aheads go wrong."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.methods.losses.it_mtl import candidates
from mtlbench.testing import toy_spec, trained
from tests.support.balancers import context, rows
from tests.support.step_parts import OwnHeads, Tiny

TARGETS = rows((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))


def losses_of(targets):
    return lambda change: (change - targets).square().sum(1) / 2


def step(rule, targets, lr=0.1):
    losses = losses_of(targets)
    start = torch.zeros_like(targets[0])
    return rule.direction(-targets, losses(start), lookahead=losses, lr=lr)


def transference(targets, members, lr):
    """Returns Σ_j Z_{J→j} from x = 0, by the closed form of the quadratic."""
    x = lr * sum(targets[i] for i in members)
    return float(sum(1 - (x - t).square().sum() / t.square().sum() for t in targets))


def test_totals_and_the_tie_by_hand():
    """Totals of the singletons -.03, .17, -.03; all tasks together .17 as well, and win."""
    totals = [transference(TARGETS, members, 0.1) for members in ((0,), (1,), (2,), (0, 1, 2))]
    assert totals == pytest.approx([-0.03, 0.17, -0.03, 0.17])
    rule = make_balancer("it_mtl")
    for dtype in (torch.float64, torch.float32):
        assert_close(step(rule, TARGETS.to(dtype)), -TARGETS.sum(0).to(dtype))
    assert rule.summary()["chosen"] == {"all": 2, "only": [0, 0, 0], "without": [0, 0, 0]}


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_choice_is_that_of_brute_force(tasks):
    rule, kinds = make_balancer("it_mtl"), set()
    every = tuple(range(tasks))
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randn(tasks, 4, generator=generator, dtype=torch.float64)
        targets *= 3 ** torch.randn(tasks, 1, generator=generator, dtype=torch.float64)
        targets += seed % 3  # from conflict to agreement
        sets = {every, *((i,) for i in every), *itertools.combinations(every, tasks - 1)}
        lr = (0.02, 0.1)[seed % 2]
        best = max(sets, key=lambda members: transference(targets, members, lr))
        assert_close(step(rule, targets, lr), -targets[list(best)].sum(0))
        kinds.add(len(best))
    assert len(kinds) == min(tasks, 3), "all kinds of sets were best at some time"
    chosen = rule.summary()["chosen"]
    assert chosen["all"] + sum(chosen["only"]) + sum(chosen["without"]) == 30


class Watched(OwnHeads, Tiny):
    """A method whose heads are watched."""


def test_heads_get_the_gradient_of_their_own_task_also_where_it_is_left_out(tmp_path):
    spec = toy_spec("tests.methods.losses.test_it_mtl:Watched", balancer="it_mtl", steps=8, clip=0.0)
    Watched.check(lambda: trained(spec, str(tmp_path)), steps=8)
    chosen = json.loads((tmp_path / spec.run_id / "summary.json").read_text())["chosen"]
    assert sum(chosen["only"]) + sum(chosen["without"]) > 0


def test_candidates():
    assert candidates(1).tolist() == [[1]]
    assert candidates(2).tolist() == [[1, 1], [1, 0], [0, 1]]
    assert len({tuple(each) for each in candidates(5).tolist()}) == len(candidates(5)) == 11
    assert candidates(5)[0].tolist() == [1] * 5


def choice(after, before=(1.0, 1.0, 1.0), active=(0, 1, 2), tasks=3):
    """Returns counters and direction; ``after`` gives losses by candidate, in the order of `candidates`."""
    rule, answers = make_balancer("it_mtl"), iter(after)
    rule.configure(tasks)
    losses = rows(*before)
    ctx = context(losses, active=active, lookahead=lambda c: losses if c is None else rows(*next(answers)))
    found = rule.combine_gradients(torch.eye(len(before)).double(), replace(ctx, descent=lambda gradient: -gradient))
    assert next(answers, None) is None, "every candidate is tried once"
    return rule.summary()["chosen"], found.tolist()


SAME = [(1.0, 1.0, 1.0)] * 7


def better(place, values, rest=SAME):
    return [values if n == place else old for n, old in enumerate(rest)]


def test_counters_and_directions():
    assert choice(SAME) == ({"all": 1, "only": [0] * 3, "without": [0] * 3}, [1, 1, 1])
    assert choice(better(2, (1.0, 0.9, 1.0))) == ({"all": 0, "only": [0, 1, 0], "without": [0] * 3}, [0, 1, 0])
    assert choice(better(6, (0.9, 1.0, 1.0))) == ({"all": 0, "only": [0] * 3, "without": [0, 0, 1]}, [1, 1, 0])


@pytest.mark.parametrize(("gap", "winner"), [(1e-15, [1, 1, 1]), (1e-12, [1, 0, 0])])
def test_a_tie_is_one_up_to_rounding(gap, winner):
    assert choice(better(1, (0.9 - gap, 1.0, 1.0), better(0, (0.9, 1.0, 1.0))))[1] == winner


def test_absent_tasks_are_no_candidates():
    after = [(1.0, 1.0), (1.0, 1.0), (0.5, 1.0)]
    found = choice(after, before=(1.0, 1.0), active=(0, 2))
    assert found == ({"all": 0, "only": [0, 0, 1], "without": [0] * 3}, [0, 1])
    alone = choice([], before=(1.0,), active=(1,))
    assert alone == ({"all": 1, "only": [0] * 3, "without": [0] * 3}, [1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_look_ahead_that_is_not_finite_is_never_chosen(bad):
    after = better(1, (0.01, 0.01, bad), better(3, (0.5, 1.0, 1.0)))
    assert choice(after)[1] == [0, 0, 1]
    assert choice([(bad, 1.0, 1.0)] * 7)[1] == [1, 1, 1]


@pytest.mark.parametrize("before", [0.0, float("nan")])
def test_a_task_without_a_loss_to_compare_with_has_no_say(before):
    after = better(1, (0.5, 1.0, 9.0), better(2, (1.0, 1.0, 0.0)))
    assert choice(after, before=(1.0, 1.0, before))[1] == [1, 0, 0]
