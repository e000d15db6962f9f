"""Every argument of every shipped rule changes what the rule does: a preset that drops one is noticed."""

from __future__ import annotations

import json

import pytest
import torch

from mtlbench import registry
from mtlbench.balancing import Balancer, make_balancer
from tests.support.jacobians import jacobian

TASKS, STEPS = 4, 7
OTHER = {
    "alignment": "rmse", "alpha": 3.0, "base_epoch": 3, "beta": 0.3, "beta_sigma": 0.9, "c": 0.7,
    "concentration": 9.0, "eps": 50.0, "every": 3,
    "forms": ["classification", "regression", "regression", "regression"], "gamma": 0.05, "gamma_sigma": 0.9,
    "groups": 3, "heads": "weighted", "initial": 0.5, "lambda_": 1.0, "leak": 0.5, "lower_bound": 0.1, "lr": 0.2,
    "max_norm": 0.1, "momentum": 0.1, "mu": 0.2, "n_byzantine": 1, "n_selected": 2, "normalise": "l2",
    "optimiser": "sgd", "per_lr": False, "primary": 2, "reference": [-1.0, 0.25, 0.5, 0.0], "reg": 0.3,
    "rescale": "linear", "rho": 0.7, "robust_step_size": 0.5, "rule": "cagrad", "scale": "mean", "sigma": 0.5,
    "skip_first": True, "steps": 2, "tau": 0.6, "temperature": 0.5, "theta": 0.5, "trim": 0, "update_every": 3,
    "warmup_epochs": 1, "weight_decay": 0.1, "weights": [0.5, 2.0, 1.0, 0.5],
}  # fmt: skip
OWN = {
    ("gls", "scale"): "raw", ("scale_invariant", "scale"): "raw", ("stch", "scale"): "raw",
    ("cosmos", "lambda_"): 8.0, ("cosmos", "scale"): "raw", ("pbi", "scale"): "raw", ("igb", "scale"): "raw",
    ("go4align", "scale"): "raw", ("cr_mogm", "alpha"): 0.2,
    ("moco", "normalise"): True, ("gradnorm", "heads"): "unit",
}  # fmt: skip
RULES = [name for name in registry.shipped() if issubclass(registry.find(name), Balancer)]
ARGUMENTS = [
    (name, argument)
    for name in RULES
    for argument in registry.arguments_of(registry.find(name))
    if argument != "preview"  # By hand there is no optimiser whose step could be tried; see probes/test_previews.py.
]


def trace(name, **arguments):
    """Returns directions, norms of heads' convention and summary of some steps, each of an epoch of its own."""
    rule, found = make_balancer(name, **arguments), []
    rule.configure(TASKS)
    targets = jacobian("plain", TASKS, 99, columns=9)

    def ahead(change):
        return (change - targets).square().sum(1)

    for step in range(STEPS):
        parts = torch.stack([jacobian("plain", TASKS, 10 * step + part, columns=9) for part in range(rule.batches)])
        losses = torch.tensor([2.0, 0.5, 1.0, 4.0]).double() * torch.tensor([0.9, 0.8, 0.95, 0.7]).double() ** step
        rows = parts if rule.batches > 1 else parts[0]
        found.append(rule.direction(rows, losses, seed=3, epoch=step, lookahead=ahead, lr=0.1).detach())
        rule.end_step(0.9 * losses + 0.2)
    return torch.stack(found), rule.heads, json.dumps(rule.summary())


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_argument_changes_what_the_rule_does(name, argument):
    usual, changed = trace(name), trace(name, **{argument: OWN.get((name, argument), OTHER[argument])})
    differs = (usual[0] - changed[0]).abs().max() > 1e-6 * usual[0].abs().max()
    assert differs or usual[1:] != changed[1:]


def test_every_rule_has_a_leaf_of_the_survey():
    assert {
        name: registry.find(name).TAXONOMY for name in RULES if registry.find(name).TAXONOMY not in registry.TAXONOMY
    } == {}
