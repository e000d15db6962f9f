"""MAPS: regularisers by hand, what modules and outputs read, and which modules serve which task."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from mtlbench.data import Batch
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.methods.architectures.maps import MAPS
from mtlbench.networks import maps
from mtlbench.runs import keys
from mtlbench.tasks import Action, Regression

MODEL = {"encoder": "mlp:plain", "inputs": {"features": 5}, "encoder_options": {"width": 8, "depth": 2}}
TASKS = {name: Action(name, size=2) for name in ("reach", "push", "carry")}


def method_of(tasks: Any = None, **arguments: Any) -> MAPS:
    torch.manual_seed(0)
    method = MAPS(MethodSpec(tasks or TASKS, MODEL), **{"modules": 4, **arguments})
    method.configure_model()
    return method.double()


def batch_of(tasks: list[str], count: int = 6, **more: Any) -> Batch:
    inputs = torch.randn(count, 5, dtype=torch.float64)
    targets = {name: torch.zeros(count, 2, dtype=torch.float64) for name in tasks}
    return Batch(inputs=inputs, targets=targets, counts=dict.fromkeys(tasks, count), id=["a"] * count, **more)


def test_sparsity_is_that_of_the_paper() -> None:
    uniform, one_hot = torch.full((3, 4), 0.25, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert maps.sparsity(uniform).item() == pytest.approx(math.log(4) / math.e, rel=1e-6), "0.50999"
    assert maps.sparsity(one_hot).item() == pytest.approx(2.3e-5, rel=0.03)
    assert maps.sparsity(torch.ones(3, 1)) == 0
    one_hot.requires_grad_()
    maps.sparsity(one_hot).backward()
    assert one_hot.grad is not None and one_hot.grad.isfinite().all()


def test_exploration_is_balanced_use() -> None:
    assert maps.exploration(torch.full((4,), 7.0)) == 0
    assert maps.exploration(torch.tensor([5.0, 0.0])) == 1.0
    assert maps.exploration(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx((2 / 3) / 4)


def test_sharing_is_the_mean_over_pairs_of_tasks() -> None:
    s = torch.rand(4, 5, 3, dtype=torch.float64)
    pairs = [(s[i] - s[j]).square().mean() for i, j in itertools.combinations(range(4), 2)]
    assert torch.allclose(maps.sharing(s), torch.stack(pairs).mean())
    assert maps.sharing(s[:1].expand(4, -1, -1)).abs() < 1e-15 and maps.sharing(s[:1]) == 0


def test_the_output_reads_the_modules_side_by_side_times_their_selections() -> None:
    network: Any = method_of().network
    inputs = torch.randn(6, 5, dtype=torch.float64)
    outputs = network(inputs, ["push"])
    onehot = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(6, 3)
    s = network.selector.layers(torch.cat([inputs, onehot], 1)).softmax(1)
    features = torch.cat([s[:, m : m + 1] * module(inputs)[-1] for m, module in enumerate(network.modules_of_all)], 1)
    assert torch.allclose(outputs.statistics["selections"]["push"], s)
    assert torch.allclose(outputs.predictions["push"], network.outputs["all"](features))


def test_tasks_share_an_output_only_if_they_predict_equally_many_numbers() -> None:
    mixed = {"reach": Action("reach", size=2), "value": Regression("value")}
    assert [list(method_of(t).network.outputs) for t in (TASKS, mixed)] == [["all"], ["reach", "value"]]
    assert list(method_of(shared_output=False).network.outputs) == list(TASKS)
    assert list(method_of(selection="even").network.outputs) == list(TASKS), "nothing else tells tasks apart"
    for tasks, more, message in ((mixed, {}, "reach 2, value 1"), (TASKS, {"selection": "even"}, "tell tasks apart")):
        with pytest.raises(MethodError, match=message):
            method_of(tasks, shared_output=True, **more)


def test_the_loss_holds_every_term_with_its_coefficient() -> None:
    """Two streams, of which the second has no observation before."""
    method = method_of()
    first, second = batch_of(["reach"]), batch_of(["push"], 4)
    first["previous"] = torch.randn(6, 5, dtype=torch.float64)
    second["previous"] = second["inputs"]
    found = method.rank_losses(Batch(streams={"a": first, "b": second}, idle=["carry"])).regularisers
    network = method.network
    reach, push = (network.selections(b["inputs"], list(TASKS)) for b in (first, second))
    before = network.selections(first["previous"], ["reach"])["reach"]
    every = torch.cat([reach["reach"], push["push"]])
    pairs = [(s[i] - s[j]).square().mean(1) for s in (reach, push) for i, j in itertools.combinations(TASKS, 2)]
    total, ratio = every.sum(0), 2 * 0.25 / 0.75
    wanted = {
        "sharing": 1.0 * (sum(p.sum() for p in pairs) / 3 / 10),
        "sparsity": 0.5 * -((every + 1e-8) ** (1 / math.log(4)) * (every + 1e-8).log()).mean(),
        "exploration": 0.1 * total.var(correction=0) / total.mean() ** 2,
        "smoothness": 1.0 * (reach["reach"] - before).square().sum() / 4 / 10,
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(ratio * value.item(), rel=1e-9), name


@pytest.mark.parametrize(("arguments", "selector"), [
    ({"selection": "soft"}, True), ({"selection": "even"}, False), ({"task_weight": 1.0}, True),
])  # fmt: skip
def test_soft_and_even_selections_have_no_terms(arguments: dict[str, Any], selector: bool) -> None:
    method = method_of(**arguments)
    assert method.rank_losses(batch_of(list(TASKS))).regularisers == {}
    assert (method.network.selector is not None) == selector
    shares = method.network(torch.zeros(2, 5, dtype=torch.float64), ["reach"]).statistics["selections"]["reach"]
    assert torch.allclose(shares.sum(1), torch.ones(2, dtype=torch.float64))
    assert selector or (shares == 0.25).all()


def test_the_summary_says_which_modules_serve_which_task() -> None:
    method = method_of()
    batch = batch_of(["reach", "push"], idle=["carry"])
    method.rank_losses(batch)
    record = method.summary()["experts"]
    selected = method.network(batch["inputs"], ["reach", "push"]).statistics["selections"]
    table = torch.tensor(record["layers"]["modules"]["load"])
    assert record["tasks"] == list(TASKS) and table.shape == (3, 4)
    assert torch.allclose(table[:2], torch.stack([selected[t].mean(0) for t in ("reach", "push")]).float(), atol=1e-6)
    assert (table[2] == 0).all(), "a task that was never seen"
    assert set(method.diagnostics()) == {keys.LOAD.key(layer="modules", expert=m) for m in range(4)}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"modules": 0}, "maps: modules and hidden must be at least 1. Found 0 and 128.*defaults"),
    ({"hidden": 0}, "Found 4 and 0"), ({"selection": "hard"}, "maps: Unknown selection 'hard'"),
    ({"task_weight": 0.0}, "maps: task_weight .* Found 0.0. The default is 0.75"),
    ({"sharing": -1.0}, "maps: sharing, .* Found -1.0. 0 leaves"), ({"smoothness": float("inf")}, "smoothness.*inf"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        method_of(**arguments)
