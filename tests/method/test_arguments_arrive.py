"""Every argument of a method arrives where it acts: in the network, its losses or its optimiser, under its own name."""

from __future__ import annotations

import functools

import pytest
import torch

from mtlbench import registry
from mtlbench.method import MTLMethod
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions
from tests.support import architectures, expert_methods

DESCRIBED = {name: [0.1 * index, 1.0] for index, name in enumerate(expert_methods.TASKS)}
COMMON = {"experts": 24, "top_k": 8, "placement": "every", "noise": 0.25, "renormalise": False}
MIXED = {**COMMON, "start": "split", "balance": 0.5}
EXPERTS = {
    "moe": (MIXED, ExpertOptions(**COMMON, init="split", gate="agnostic"), RoutingWeights(load_balance=0.5)),
    "task_moe": (
        {**MIXED, "gate": "description", "descriptions": DESCRIBED, "describer": "me/small"},
        ExpertOptions(**COMMON, init="split", gate="description", descriptions=DESCRIBED),
        RoutingWeights(load_balance=0.5),
    ),
    "m3vit": (
        {**MIXED, "gate": "token_task"},
        ExpertOptions(**COMMON, init="split", gate="token_task"),
        RoutingWeights(task_balance=0.5, importance=0.5),
    ),
    "mod_squad": (
        {
            **COMMON,
            "start": "copy",
            "mutual_information": 0.5,
            "z": 0.125,
            "prior": "tokens",
            "scope": "local",
            "attention_experts": 5,
            "attention_top_k": 4,
            "attention_placement": "odd",
            "gate": "task",
            "task_tokens": 0.75,
        },
        ExpertOptions(
            **COMMON,
            init="copy",
            gate="task",
            task_tokens=0.75,
            attention_experts=5,
            attention_top_k=4,
            attention_placement="odd",
        ),
        RoutingWeights(mutual_information=0.5, z=0.125, prior="tokens", scope="local"),
    ),
}
"""Arguments that all differ from the defaults, and what they must become."""

DEFAULTS = {
    "moe": (ExpertOptions(8, 2, "odd", gate="agnostic"), RoutingWeights(load_balance=0.01)),
    "task_moe": (ExpertOptions(8, 2, "odd", gate="token_task"), RoutingWeights(load_balance=0.01)),
    "m3vit": (ExpertOptions(16, 4, "odd", gate="per_task"), RoutingWeights(task_balance=0.01, importance=0.01)),
    "mod_squad": (
        ExpertOptions(16, 4, "odd", None, None, "even", "per_task", task_tokens=0.02),
        RoutingWeights(mutual_information=0.005),
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_arguments_of_methods_with_experts(name):
    given, options, weights = EXPERTS[name]
    cls = registry.find(name)
    assert set(given) == set(registry.arguments_of(cls)), "all of them"
    assert all(value != registry.arguments_of(cls)[key].default for key, value in given.items())
    method, plain = expert_methods.build(cls, **given), expert_methods.build(cls)
    assert (method.options, method.weights) == (options, weights)
    assert (plain.options, plain.weights) == DEFAULTS[name]
    assert method.network.layers["block1.mlp"].router.top_k == 8
    assert method._statistics.scope == weights.scope and list(method._statistics.tasks) == list(expert_methods.TASKS)


OTHER = {
    "arguments": {"experts": 3}, "as_large_as": "moe", "auxiliary": 0.25,
    "dropout": 0.5, "entropy": 0.5, "experts": 2, "exploration": 0.75, "gamma": 2.0, "heads": 1, "hidden": 5,
    "levels": 1, "modules": 2, "nddr_lr": 3.0, "other": 0.25, "own": 0.5, "private": 2, "prompts": 2, "rank": 5,
    "reduction": 2,
    "scale": 7.0, "selection": "soft", "shared": 2, "sharing": 0.75,
    "sparsity": 0.75, "stitch_lr": 3.0, "task_rank": 3, "task_weight": 0.25, "top_k": 1,
}  # fmt: skip
IN_TRAINING = {"disparse", "graph_mtl", "multitasking", "rcm"}
"""Architectures whose arguments act on training data or over the steps, which their own tests look at."""
FAMILY = [
    name
    for name in registry.shipped()
    if f".architectures.{name}" in registry.find(name).__module__ and name not in IN_TRAINING
]
ELSEWHERE = {("maps", "smoothness"), ("maps", "shared_output"), ("esmm", "chain")}
"""Arguments that need sequences, tasks with like outputs, or tasks of two classes: the methods' own tests have them."""
ARGUMENTS = [
    (name, argument)
    for name in FAMILY
    for argument in registry.arguments_of(registry.find(name))
    if (name, argument) not in ELSEWHERE
]
RATES = {"nddr_lr", "stitch_lr"}


@functools.cache
def made_of(name, argument=None):
    """Returns what a method with one changed argument is made of, answers in training, and optimises."""
    method = architectures.made(name, **({argument: OTHER[argument]} if argument else {})).train()
    for parameter in method.network.parameters():
        if not parameter.any():  # Low-rank changes start at zero, whatever their scale.
            torch.nn.init.constant_(parameter, 0.1)
    torch.manual_seed(1)
    batch = {"image": architectures.images(), "counts": dict.fromkeys(architectures.TASKS, 1)}
    outputs = method.network(batch["image"], list(architectures.TASKS))
    values = {f"weight {key}": value for key, value in method.network.state_dict().items()}
    values |= {f"answer {key}": value for key, value in outputs.predictions.items()}
    values |= {
        f"auxiliary {task} {i}": weight * prediction
        for task, found in outputs.auxiliary.items()
        for i, (weight, prediction) in enumerate(found)
    }
    values |= {f"loss {key}": value for key, value in method.regularisation(outputs, batch).items()}
    groups = [(group.get("lr"), group.get("weight_decay")) for group in method.parameter_groups()]
    return {key: value.detach() for key, value in values.items()}, groups


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_argument_changes_what_an_architecture_does(name, argument):
    (usual, groups), (changed, other_groups) = made_of(name), made_of(name, argument)
    if argument in RATES:
        assert [lr for lr, _ in other_groups if lr is not None] == [3.0 * 1e-3]
        assert [lr for lr, _ in groups if lr is not None] == [1e-3]
        return
    same = usual.keys() == changed.keys() and all(
        value.shape == changed[key].shape and torch.equal(value, changed[key]) for key, value in usual.items()
    )
    assert not same and groups == other_groups


def test_all_architectures_are_looked_at():
    assert {"astmt", "mtlora", "ple", "mmoe"} <= set(FAMILY) and len(ARGUMENTS) >= 20
    assert all(issubclass(registry.find(name), MTLMethod) for name in FAMILY)
