"""Tasks may have any name, also names that torch refuses for modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mtlbench.method import MethodSpec
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.named import NamedModules, stored
from mtlbench.networks.pruned_files import packed
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.tasks import Classification, Depth, Regression
from mtlbench.testing import check_network, toy_spec
from mtlbench.training.build import build_method

TAKEN = sorted(name for name in dir(nn.ModuleDict()) if not name.startswith("_"))
ODD = ["clear", "keys", "items", "pop", "type", "float", "train", "forward", "_modules", "a.b", "", "task:x"]
MODEL = {"encoder": "mlp:plain", "encoder_options": {"width": 4, "depth": 1}, "inputs": {"features": 3}}


def test_every_name_is_taken_and_given_back():
    names = [*TAKEN, *ODD, "a~b", "a~1b", "a~0.b", "plain"]
    modules = NamedModules({name: nn.Linear(1, 1) for name in names})
    assert list(modules) == list(modules.keys()) == [name for name, _ in modules.items()] == list(dict.fromkeys(names))
    assert len({id(modules[name]) for name in names}) == len(modules) == len(dict.fromkeys(names))
    assert all(name in modules for name in names) and "other" not in modules
    other = copy.deepcopy(modules)
    other.load_state_dict(modules.state_dict())
    assert torch.equal(other["keys"].weight, modules["keys"].weight) and other["keys"] is not modules["keys"]
    assert len(list(modules.parameters())) == 2 * len(modules) and modules.train(False)["train"].training is False
    removed = modules.pop("clear")
    assert "clear" not in modules and isinstance(removed, nn.Linear)
    modules.clear()
    assert not modules


def test_other_names_are_stored_as_they_are():
    assert stored("depth") == "depth" and len({stored(name) for name in [*TAKEN, *ODD]}) == len({*TAKEN, *ODD})
    assert list(NamedModules({"depth": nn.Linear(1, 1)}).state_dict()) == ["depth.weight", "depth.bias"]


@pytest.mark.parametrize("network", [DenseNetwork, PrunedNetwork])
def test_networks_predict_tasks_of_these_names(network):
    tasks = {name: Regression(name) for name in ODD}
    built = network(tasks, **MODEL)
    predictions = built(torch.zeros(2, 3), ODD).predictions
    assert list(predictions) == ODD and all(value.shape == (2, 1) for value in predictions.values())
    for path, value in built.named_parameters():
        assert built.get_parameter(path) is value


def test_a_pruned_network_packs_the_head_of_its_task_alone():
    built = PrunedNetwork({name: Regression(name) for name in ("clear", "a.b")}, **MODEL)
    assert {key.split(".")[1] for key in packed(built, "a.b") if key.startswith("heads.")} == {stored("a.b")}


@pytest.mark.parametrize(
    "name", ["graph_mtl", "cross_stitch", "pad_net", "rcm", "mcn", "mtlora", "disparse", "task_moe"]
)
def test_every_network_takes_these_names(name):
    tasks = {"clear": Depth("clear"), "a.b": Classification("a.b", classes=3), "type": Depth("type")}
    spec = toy_spec(name)
    method = build_method(spec.method, MethodSpec(tasks, spec.model))
    method.configure_model()
    assert check_network(method.network, tasks) is None
    assert list(method.metrics) == list(tasks)
