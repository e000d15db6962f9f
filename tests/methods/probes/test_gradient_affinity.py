"""Gradient affinity: cosines by hand, what is not counted, and a run against gradients taken one by one."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.testing import TOLERANCE, difference, toy_spec, trained
from tests.support.balancers import context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian
from tests.support.step_parts import Tiny


def made(tasks, **arguments):
    rule = make_balancer("gradient_affinity", **arguments)
    rule.configure(tasks)
    return rule


def affinity(rule):
    return torch.tensor(rule.summary()["affinity"], dtype=torch.float64)


def test_cosines_by_hand():
    rule = made(3)
    assert_close(rule.direction(rows((3.0, 0.0), (-1.0, 1.0), (0.0, 2.0))), rows(2.0, 3.0))
    root = 0.5**0.5
    assert_close(affinity(rule), rows((1, -root, 0), (-root, 1, root), (0, root, 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_cosines(kind):
    rule, every = made(4, every=1), [jacobian(kind, 4, seed) for seed in range(3)]
    for step, each in enumerate(every):
        assert_close(rule.weights(gramian_of(each), step=step), torch.ones(4).double())
    found = torch.stack([torch.nn.functional.cosine_similarity(each[:, None], each, dim=2) for each in every]).mean(0)
    zero = kind == "zero row"
    told = slice(0, 3) if zero else slice(0, 4)
    assert_close(affinity_of_known(rule)[told, told], found[told, told], atol=1e-6, rtol=0)
    probes = torch.tensor(rule.summary()["probes"])
    assert (probes[told, told] == 3).all() and (probes[3] == (0 if zero else 3)).all()


def affinity_of_known(rule):
    return torch.tensor(
        [[float("nan") if v is None else v for v in row] for row in rule.summary()["affinity"]]
    ).double()


def test_length_does_not_matter():
    one, other = made(3), made(3)
    given = jacobian("plain", 3)
    one.weights(gramian_of(given))
    other.weights(gramian_of(given * rows((1e-3,), (1.0,), (1e3,))))
    assert_close(affinity(one), affinity(other), atol=1e-6, rtol=0)


def test_absent_tasks_have_no_pairs():
    rule = made(3)
    rule.gradient_weights(gramian_of(rows((1.0, 0.0), (0.0, 1.0))), context(torch.ones(2), active=(0, 2)))
    assert rule.summary()["probes"] == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert rule.summary()["affinity"] == [[1.0, None, 0.0], [None, None, None], [0.0, None, 1.0]]


class Plain(Tiny):
    """The sum; keeps the cosines of every second step."""

    found: list = []

    def backward(self, loss):
        if self._state.step % 2 == 0:
            grads = [
                torch.cat([g.flatten() for g in torch.autograd.grad(row, self.surgery.shared, retain_graph=True)])
                for row in self._state.rows.values()
            ]
            every = torch.stack(grads)
            Plain.found.append(torch.nn.functional.cosine_similarity(every[:, None], every, dim=2))
        super().backward(loss)


@pytest.mark.parametrize("way", ["plain", "light"])
def test_a_run_against_gradients_taken_one_by_one(way, tmp_path):
    Plain.found = []
    plain = trained(toy_spec("tests.methods.probes.test_gradient_affinity:Plain", steps=7, ragged=False), str(tmp_path))
    spec = toy_spec(
        "tests.support.step_parts:Tiny", balancer="gradient_affinity", steps=7, ragged=False, local={"surgery": way}
    )
    spec.method["balancer"]["arguments"] = {"every": 2}
    found = trained(spec, str(tmp_path))
    assert difference(plain, {key: value for key, value in found.items() if key in plain}) <= TOLERANCE
    summary = json.loads((tmp_path / spec.run_id / "summary.json").read_text())
    assert summary["probes"] == [[4] * 4] * 4
    assert_close(torch.tensor(summary["affinity"]).double(), torch.stack(Plain.found).mean(0), atol=1e-6, rtol=0)
