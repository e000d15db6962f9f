"""Inter-task affinity: the table by hand, what is not counted, and a run against a slow one written out plainly."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.losses import reduce_losses
from mtlbench.errors import MethodError
from mtlbench.method.forward import label_counts, loss_sums, scales
from mtlbench.testing import TOLERANCE, ToyData, difference, toy_spec, trained
from tests.support.balancers import context, rows
from tests.support.step_parts import Tiny, trained_in_fp16

TARGETS = rows((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))
TABLE = rows((0.19, -0.01, -0.21), (-0.01, 0.19, -0.01), (-0.21, -0.01, 0.19))
"""Sources in rows: L_i = ½ ‖x - t_i‖², x = 0, a step of plain gradient descent at 0.1."""


def losses_of(targets):
    return lambda change: (change - targets).square().sum(1) / 2


def step(rule, targets, lr=0.1, **options):
    """Takes one step on quadratic losses from x = 0; returns the direction."""
    losses = losses_of(targets)
    return rule.direction(-targets, losses(torch.zeros(2).double()), lookahead=losses, lr=lr, **options)


def made(**arguments):
    return make_balancer("inter_task_affinity", **arguments)


def affinity(rule):
    return torch.tensor(rule.summary()["affinity"], dtype=torch.float64)


@pytest.mark.parametrize("per_lr", [False, True])
def test_the_table_of_one_step(per_lr):
    rule = made(per_lr=per_lr)
    assert_close(step(rule, TARGETS), -TARGETS.sum(0))
    assert_close(affinity(rule), TABLE.T / (0.1 if per_lr else 1.0), atol=1e-6, rtol=0)
    assert rule.summary()["probes"] == [[1] * 3] * 3


def test_recipients_stand_in_rows():
    """Task 1 is four times as far away: its step is the longer one, and what others gain from it the larger."""
    rule = made(per_lr=False)
    step(rule, rows((1.0, 0.0), (4.0, 0.0)))
    # By hand: x = 0.4 lowers ½ to 0.18; x = 0.1 lowers 8 to 7.605.
    assert_close(affinity(rule), rows((0.19, 0.64), (0.049375, 0.19)), atol=1e-6, rtol=0)


def test_the_mean_is_over_measured_steps_alone():
    rule = made(every=2, per_lr=False)
    for number, lr in enumerate((0.1, 0.9, 0.2)):
        step(rule, TARGETS, lr=lr, step=number)
    assert_close(affinity(rule).diagonal(), torch.full((3,), (0.19 + 0.36) / 2).double(), atol=1e-6, rtol=0)
    assert rule.summary()["probes"][0] == [2, 2, 2]


def test_tasks_may_change_places():
    one, other, order = made(), made(), [2, 0, 1]
    targets = rows((1.0, 0.3), (0.2, 1.0), (-1.0, 0.4))
    step(one, targets)
    step(other, targets[order])
    assert_close(affinity(one)[order][:, order], affinity(other))


def test_a_step_that_goes_nowhere_changes_nothing():
    rule, gradients = made(), -TARGETS.clone()
    gradients[1] = 0
    losses = losses_of(TARGETS)
    rule.direction(gradients, losses(torch.zeros(2).double()), lookahead=losses, lr=0.1)
    assert (affinity(rule)[:, 1] == 0).all() and (affinity(rule).diagonal()[[0, 2]] > 0).all()


def watched(rule, losses, after, active=None, lr=0.5):
    """Takes a step whose losses after every source's step are given; returns the changes that were tried."""
    asked = []

    def lookahead(change, tasks=None):
        asked.append(change)
        return losses if change is None else after

    ctx = context(losses, active=active, lookahead=lookahead)
    rule.combine_gradients(torch.eye(len(losses)).double(), replace(ctx, descent=lambda g: -lr * g, lr=lr))
    return asked


def test_a_loss_below_zero_gains_by_falling():
    rule = made(per_lr=False)
    rule.configure(2)
    watched(rule, rows(-2.0, 2.0), rows(-3.0, 3.0))
    assert_close(affinity(rule), rows((0.5, 0.5), (-0.5, -0.5)), atol=1e-6, rtol=0)


def test_absent_tasks_have_no_pairs():
    rule = made(per_lr=False)
    rule.configure(3)
    watched(rule, rows(1.0, 2.0), rows(0.5, 2.0), active=(0, 2))
    watched(rule, rows(1.0, 2.0, 1.0), rows(0.9, 2.0, 1.0))
    found = rule.summary()
    assert found["probes"] == [[2, 1, 2], [1, 1, 1], [2, 1, 2]]
    assert_close(affinity(rule)[0], rows(0.3, 0.1, 0.3), atol=1e-6, rtol=0)
    unseen = made()
    unseen.configure(2)
    assert unseen.summary() == {"affinity": [[None, None]] * 2, "probes": [[0, 0]] * 2}


def test_what_is_not_finite_is_not_counted():
    rule, nan = made(), float("nan")
    rule.configure(4)
    watched(rule, rows(1.0, 0.0, nan, 1.0), rows(0.5, 1.0, 1.0, torch.inf))
    assert rule.summary()["probes"] == [[1] * 4, *[[0] * 4] * 3]
    watched(rule, rows(1.0, 1.0, 1.0, 1.0), rows(1.0, 1.0, 1.0, 1.0), lr=0.0)
    assert rule.summary()["probes"] == [[1] * 4, *[[0] * 4] * 3]
    assert rule.summary()["affinity"][0] == pytest.approx([1.0] * 4)


def test_one_task_has_no_pairs_and_costs_nothing():
    rule = made()
    rule.configure(1)
    assert watched(rule, rows(1.0), rows(0.5)) == []
    assert rule.summary() == {"affinity": [[None]], "probes": [[0]]}


@pytest.mark.parametrize("value", [0, -3])
def test_arguments_out_of_range_are_refused(value):
    with pytest.raises(MethodError, match=f"every must be at least 1. Found {value}"):
        made(every=value)


# ---- runs -----------------------------------------------------------------------------------------------------------


class Plain(Tiny):
    """The sum; every third step, copies of network and optimiser take the step of every task and are looked at."""

    found: dict = {}
    stepping: str = ""

    def backward(self, loss):
        if self._state.step % 3 == 0:
            optimiser, active = self.trainer.optimizers[0], self._state.ctx.active
            before = self.losses_of(self.network)
            for i in active:
                shared = self.surgery.shared
                gradient = torch.autograd.grad(self._state.rows[i], shared, retain_graph=True)
                network, twin = copy.deepcopy((self.network, optimiser))
                if Plain.stepping == "gradient":
                    twin = torch.optim.SGD([{"params": g["params"], "lr": g["lr"]} for g in twin.param_groups])
                for p in network.parameters():
                    p.grad = None
                for p, value in zip(network.shared_parameters(list(self.tasks)), gradient, strict=True):
                    p.grad = value
                twin.step()
                after = self.losses_of(network)
                for j in active:
                    value = (1 - after[j] / before[j]) / optimiser.param_groups[0]["lr"]
                    Plain.found.setdefault((j, i), []).append(float(value))
        super().backward(loss)

    @torch.no_grad()
    def losses_of(self, network):
        network = copy.deepcopy(network)
        batch = self._state.batch
        sums = torch.stack(loss_sums(network, self.tasks, batch, list(self.tasks)))
        return reduce_losses(sums, label_counts(self.tasks, batch), scales(self.tasks)).means()


@pytest.mark.parametrize(
    ("preview", "optimiser", "norm"),
    [("optimiser", "sgd", "batch"), ("optimiser", "adamw", "group"), ("gradient", "adamw", "group")],
)
def test_a_run_against_copies_that_really_step(preview, optimiser, norm, tmp_path):
    """Momentum takes part if asked for, BatchNorm keeps its statistics, absent tasks have fewer values."""
    Plain.found, Plain.stepping = {}, preview
    options = {"steps": 13, "clip": 0.0}
    specs = [
        toy_spec("tests.methods.probes.test_inter_task_affinity:Plain", arguments={"norm": norm}, **options),
        toy_spec("tests.support.step_parts:Tiny", arguments={"norm": norm}, balancer="inter_task_affinity", **options),
    ]
    specs[1].method["balancer"]["arguments"] = {"every": 3, "per_lr": True, "preview": preview}
    changes = {"name": optimiser, "schedule": "cosine", "weight_decay": 0.01}
    specs = [replace(spec, optimiser={**spec.optimiser, **changes}) for spec in specs]
    plain, measured = (trained(spec, str(tmp_path)) for spec in specs)
    assert difference(plain, {key: value for key, value in measured.items() if key in plain}) <= TOLERANCE
    summary = json.loads((tmp_path / specs[1].run_id / "summary.json").read_text())
    places = range(len(ToyData.TASKS))
    assert summary["probes"] == [[len(Plain.found[j, i]) for i in places] for j in places]
    assert min(map(min, summary["probes"])) < max(map(max, summary["probes"])) == 5
    expected = [[sum(Plain.found[j, i]) / len(Plain.found[j, i]) for i in places] for j in places]
    assert_close(torch.tensor(summary["affinity"]), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_the_table_is_of_the_whole_training_also_where_an_earlier_step_is_kept(tmp_path):
    found = []
    for selection in ("last", "best"):
        spec = toy_spec("tests.support.step_parts:Tiny", balancer="inter_task_affinity", steps=9)
        spec.method["balancer"]["arguments"] = {"every": 3, "per_lr": True}
        trainer = {**spec.trainer, "selection": selection, "evaluate_every": 1}
        spec = replace(spec, trainer=trainer, optimiser={**spec.optimiser, "lr": 0.3})
        weights = trained(spec, str(tmp_path))
        network = {name: value for name, value in weights.items() if name.startswith("network.")}
        found.append((json.loads((tmp_path / spec.run_id / "summary.json").read_text()), network))
    (last, late), (best, early) = found
    assert difference(late, early) > 1e-3, "another step is kept"
    assert best == last and max(map(max, best["probes"])) == 3


def test_fp16_measures_too(tmp_path):
    found = []
    for folder, train in (("full", trained), ("half", trained_in_fp16)):
        spec = toy_spec(
            "tests.support.step_parts:Tiny", balancer="inter_task_affinity", steps=5, precision="32-true", ragged=False
        )
        spec.method["balancer"]["arguments"] = {"every": 2, "per_lr": True}
        train(spec, str(tmp_path / folder))
        found.append(json.loads((tmp_path / folder / spec.run_id / "summary.json").read_text()))
    full, half = (torch.tensor(summary["affinity"]) for summary in found)
    assert found[0]["probes"] == found[1]["probes"] == [[3] * 4] * 4
    assert not torch.equal(full, half)
    assert_close(half, full, rtol=0, atol=0.05 * float(full.abs().max()))
