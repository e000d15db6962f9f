"""HydaLearn: weights by hand, the main task, what it asks of look-aheads, and runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.methods.probes.hydalearn import HydaLearn, task_weights
from mtlbench.tasks import Regression
from mtlbench.testing import difference, toy_spec, trained
from tests.support.balancers import context, rows
from tests.support.step_parts import OwnHeads

TARGETS = rows((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))


def made(*names, **arguments):
    return HydaLearn(MethodSpec({name: Regression(name) for name in names or "abc"}), **arguments)


def step(method, targets, active=None, lr=0.1):
    """Takes one step on L_i = ½ ‖x - t_i‖² from x = 0; returns weights, by unit gradients, and the tasks asked for."""
    asked, losses = [], lambda x: (x - targets).square().sum(1) / 2

    def lookahead(change, tasks=None):
        asked.append(list(tasks))
        found = losses(torch.zeros(targets.shape[1]).double() if change is None else change)
        return found[[ctx.active.index(i) for i in tasks]]

    ctx = context(losses(0), active=active, lookahead=lookahead)
    ctx = replace(ctx, descent=lambda gradient: -lr * gradient[: targets.shape[1]])
    # Columns behind the parameters, which no loss reads, tell the weights.
    marked = torch.cat([-targets, torch.eye(len(targets)).double()], 1)
    return method.combine_gradients(marked, ctx)[targets.shape[1] :], asked


def test_weights_by_hand():
    """Relative gains of task a: .19 by its own step, -.01 and -.21 by those of the others."""
    weights, asked = step(made(main="a"), TARGETS)
    assert_close(weights, rows(3.0, 0.0, 0.0))
    assert asked == [[0]] * 4, "the loss of the main task alone, before and after three steps"
    weights, _ = step(made(main="b"), TARGETS)
    assert_close(weights, rows(0.0, 3.0, 0.0))


def test_weights_have_the_ratio_of_the_gains():
    targets = rows((2.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    weights, _ = step(made(main="a"), targets)
    # By hand: x = .2 gives 1.8² / 4 = .81, x = .1 gives 1.9² / 4 = .9025, x = (0, .1) raises the loss.
    assert_close(weights, 3 * rows(0.19, 0.0975, 0.0) / 0.2875)


def test_a_twin_of_the_main_task_weighs_as_much():
    weights, _ = step(made(main="a"), rows((1.0, 0.5), (1.0, 0.5), (-1.0, 1.0)))
    assert_close(weights, rows(1.5, 1.5, 0.0))


def test_weights_sum_to_the_number_of_tasks_and_do_not_see_scales():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gains = torch.randn(5, generator=generator, dtype=torch.float64)
        weights = task_weights(gains, 1, 0.3)
        assert float(weights.sum()) == pytest.approx(5) and weights.min() >= 0 and weights[1] >= 0.3
        assert_close(task_weights(gains * 1e-9, 1, 0.3), weights)
        order = [3, 1, 4, 0, 2]
        assert_close(task_weights(gains[order], 1, 0.3), weights[order])


@pytest.mark.parametrize(("gains", "w_min", "expected"), [
    ((-1.0, -2.0, 0.0), 0.1, (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), 0.0, (1.0, 1.0, 1.0)),
    ((-1.0, 0.1, 0.3), 0.0, (0.0, 0.75, 2.25)), ((-1.0, 0.1, 0.3), 0.6, (0.6, 0.6, 1.8)),
    ((1.0, 0.0, -1.0), 1.0, (3.0, 0.0, 0.0)), ((0.1, 0.0, 0.2), 1.0, (1.0, 0.0, 2.0)),
])  # fmt: skip
def test_floor_and_fall_back_by_hand(gains, w_min, expected):
    assert_close(task_weights(rows(*gains), 0, w_min), rows(*expected))


def test_all_tasks_as_main_tasks():
    """Mean gains over the tasks: (-.03, .17, -.03) / 3, by symmetry of the table."""
    weights, asked = step(made(main="all"), TARGETS)
    assert_close(weights, rows(0.0, 3.0, 0.0))
    assert asked == [[0, 1, 2]] * 4
    targets = rows((1.0, 0.0), (0.0, 1.0))
    assert_close(step(made(main="all"), targets)[0], rows(1.0, 1.0))


def test_gains_are_relative_to_the_loss_of_each_main_task():
    """By hand: of ½ and 8, a's own step saves .19 and .049375, b's saves .64 and .19; absolute gains are dominated."""
    weights, _ = step(made(main="all"), rows((1.0, 0.0), (4.0, 0.0)))
    first, second = 0.19 + 0.049375, 0.64 + 0.19
    assert_close(weights, 2 * rows(first, second) / (first + second))


def test_a_loss_below_zero_gains_by_falling():
    """From -2 to -3 is half of its size gained, from -2 to -1 as much lost."""
    before = rows(-2.0, 1.0)
    answers = iter([before[:1], rows(-3.0), rows(-1.0)])
    ctx = context(before, lookahead=lambda change, tasks=None: next(answers))
    found = made("a", "b", main="a").combine_gradients(torch.eye(2).double(), replace(ctx, descent=lambda g: -g))
    assert_close(found, rows(2.0, 0.0))


class Watched(OwnHeads, HydaLearn):
    """HydaLearn whose heads are watched."""


def test_heads_get_the_gradient_of_their_own_task_whatever_its_weight(tmp_path):
    spec = toy_spec("tests.methods.probes.test_hydalearn:Watched", steps=4, clip=0.0, arguments={"main": "far"})
    Watched.check(lambda: trained(spec, str(tmp_path)), steps=4)
    summary = json.loads((tmp_path / spec.run_id / "summary.json").read_text())
    assert max(abs(weight - 1) for weight in summary["weights"].values()) > 0.1


def test_without_the_main_task_all_weigh_the_same():
    weights, asked = step(made(main="b"), TARGETS[:2], active=(0, 2))
    assert_close(weights, rows(1.0, 1.0))
    assert asked == []
    weights, asked = step(made(main="c"), TARGETS[:2], active=(0, 2))
    assert_close(weights, rows(0.0, 2.0))
    assert asked == [[2]] * 3


def test_a_loss_that_cannot_be_compared_gains_nothing():
    assert_close(step(made(main="a"), rows((0.0, 0.0), (1.0, 0.0)))[0], rows(1.0, 1.0))
    assert_close(step(made(main="a"), TARGETS, lr=float("inf"))[0], rows(1.0, 1.0, 1.0))
    answers = iter([rows(0.0), rows(-1.0), rows(0.0)])  # from 0 to below 0: infinitely much gained
    ctx = context(rows(0.0, 1.0), lookahead=lambda change, tasks=None: next(answers))
    found = made("a", "b", main="a").combine_gradients(torch.eye(2).double(), replace(ctx, descent=lambda g: -g))
    assert_close(found, rows(2.0, 0.0))


def test_the_main_task_by_name():
    assert made("depth", "semseg").main == "semseg" and made("depth", "normals").main == "depth"
    assert made("depth", "semseg", main="depth").main == "depth"
    with pytest.raises(MethodError, match="main task 'normal'. Did you mean 'normals'"):
        made("depth", "normals", main="normal")


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_arguments_out_of_range_are_refused(value):
    with pytest.raises(MethodError, match=r"w_min must be in \[0, 1\]"):
        made(w_min=value)


def test_the_summary_has_mean_weights_over_the_steps_with_a_label():
    method = made(main="a")
    step(method, TARGETS)
    step(method, TARGETS[:2], active=(1, 2))
    found = method.summary()
    assert (found["main"], found["weights"]) == ("a", {"a": 3.0, "b": 0.5, "c": 0.5})
    assert found["probes"] == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert found["affinity"][0] == pytest.approx([0.19, -0.01, -0.21]) and found["affinity"][1] == [None] * 3


@pytest.mark.parametrize("main", ["far", "all"])
def test_a_run_follows_the_gains(main, tmp_path):
    spec = toy_spec("hydalearn", steps=6, arguments={"main": main})
    weights = trained(spec, str(tmp_path))
    assert difference(weights, {**weights, **trained(toy_spec("uniform", steps=6), str(tmp_path))}) > 1e-3
    summary = json.loads((tmp_path / spec.run_id / "summary.json").read_text())
    assert summary["main"] == main and min(summary["weights"].values()) >= 0
    assert torch.isclose(weights["weight_sums"].sum(), weights["weight_steps"].sum().to(weights["weight_sums"]))


def test_one_task_is_trained_as_alone(tmp_path):
    alone = trained(toy_spec("single_task", steps=3, tasks=["far"]), str(tmp_path / "alone"))
    found = trained(toy_spec("hydalearn", steps=3, tasks=["far"]), str(tmp_path / "found"))
    assert difference(alone, {key: value for key, value in found.items() if key in alone}) < 1e-9
