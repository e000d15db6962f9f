"""Task-aware experts: gates that see the task, the mixture balanced."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.methods.experts.task_moe import TaskMoE
from tests.support.expert_methods import TASKS, build, images, losses, train_routers


def test_the_regulariser_balances_the_mixture_of_tasks():
    method = build(TaskMoE, experts=4, balance=0.5, placement="every")
    found, layers = losses(method)
    expected = sum(4 * (s.load.mean(0) * s.probability.mean(0)).sum() for s in layers.values())
    assert list(found) == ["load_balance"]
    torch.testing.assert_close(found["load_balance"], 0.5 * expected)


def test_the_regulariser_reaches_routers_and_balances_them():
    method = build(TaskMoE, experts=4, balance=1.0)
    with torch.no_grad():
        router = method.network.routers[0]  # made to prefer its first expert for every task
        router.task.weight[0] += 0.1 * sum(e.vector for e in router.embeddings.values())
    values = train_routers(method)
    assert values[-1] < values[0] - 0.1 and values[-1] > 1.9  # two layers, 1 each at best


def test_descriptions_stand_in_for_embeddings():
    told = {"depth": [1.0, 0.0], "normals": [1.0, 0.1], "kind": [-1.0, 3.0]}
    method = build(TaskMoE, experts=4, gate="description", descriptions=told)
    assert all(not router.embeddings for router in method.network.routers)
    assert set(method(images())) == set(TASKS)
    with pytest.raises(MethodError, match="Found none for normals, kind"):
        build(TaskMoE, gate="description", descriptions={"depth": [1.0]})


def test_what_is_recorded():
    method = build(TaskMoE, experts=4)
    assert method.diagnostics() == {} and method.summary()["experts"]["tasks"] == list(TASKS)
    losses(method)
    found = method.diagnostics()
    assert set(found) == {
        f"experts/block{b}.mlp/{key}"
        for b in (1, 3)
        for key in ("mutual_information", *(f"load/{e}" for e in range(4)))
    }
    shares = [found[f"experts/block1.mlp/load/{e}"] for e in range(4)]
    torch.testing.assert_close(sum(shares), torch.tensor(1.0))
    (first, _) = method.summary()["experts"]["layers"].values()
    assert [round(sum(row), 4) for row in first["load"]] == [1.0] * 3


def test_an_evaluation_leaves_no_trace_in_the_running_tables():
    method = build(TaskMoE, experts=4)
    losses(method)
    before = {k: v.clone() for k, v in method.network.state_dict().items()}
    method.eval()(images())
    assert all(torch.equal(v, before[k]) for k, v in method.network.state_dict().items())


def test_values_outside_their_range():
    with pytest.raises(MethodError, match="load_balance"):
        build(TaskMoE, balance=-1.0)
