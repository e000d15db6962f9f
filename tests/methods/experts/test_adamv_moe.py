"""AdaMV-MoE: the search for k by hand, routing with a k per task, runs that change it, and extraction."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.methods.experts.adamv_moe import AdaMVMoE, Patience
from mtlbench.networks.experts.extraction import extract, kept_experts, routes
from mtlbench.networks.flops import cost_alone
from mtlbench.testing import difference, toy_spec, trained
from tests.support.expert_methods import TASKS, build, images, losses


def followed(values, start=2, limit=4):
    """Returns k after every interval with these mean losses."""
    state, found = Patience(start, limit), []
    for value in values:
        state = state.after(value)
        found.append(state.count)
    return found


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ((4.0, 3.0, 2.0), [2, 2, 2]),  # progress changes nothing
        ((4.0, 4.0, 3.0, 3.0, 2.0), [2, 3, 3, 4, 4]),  # one more helps, and one more again
        ((4.0, 4.0, 4.0, 3.0), [2, 3, 1, 1]),  # one more does not, one less does
        ((4.0, 4.0, 4.0, 4.0, 4.0), [2, 3, 1, 2, 3]),  # neither does, and it begins anew
        ((4.0, 5.0, 4.5, 4.2, 3.9), [2, 3, 1, 2, 2]),  # what counts is the best loss so far
    ],
)
def test_the_search_by_hand(values, counts):
    assert followed(values) == counts


def test_the_bounds_of_k():
    assert followed((4.0, 4.0, 3.0), start=4) == [4, 3, 3]
    assert followed((4.0, 4.0, 4.0), start=1) == [1, 2, 1]
    assert followed((4.0, 4.0, 4.0), start=1, limit=1) == [1, 1, 1]


def test_every_task_uses_its_own_number_of_experts():
    method = build(AdaMVMoE, experts=8, top_k=2)
    counts = {"depth": 1, "normals": 4, "kind": 2}
    for router in method.network.routers:
        router.use(counts)
    method.eval()
    for task, count in counts.items():
        with routes(method.network) as chosen:
            method.network(images(), [task])
        assert {choice.shape[1] for choice in chosen.values()} == {count}
    together = method.network(images(), list(TASKS)).predictions
    for task in TASKS:
        assert_close(method.network(images(), [task]).predictions[task], together[task])
    active = {task: cost_alone(method.network, images(1), task) for task in TASKS}
    assert active["normals"][0] > active["kind"][0] > active["depth"][0]
    found, statistics = losses(method)
    assert all(s.load.shape == (3, 8) and s.load.sum(1).allclose(torch.ones(3)) for s in statistics.values())


def test_k_is_in_the_weights():
    one, other = build(AdaMVMoE, experts=8), build(AdaMVMoE, experts=8)
    for router in one.network.routers:
        router.use({"depth": 1, "normals": 4, "kind": 3})
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert [r.count(["normals"]) for r in other.network.routers] == [4, 4]
    assert all(isinstance(value, torch.Tensor) for value in one.state_dict().values())


def test_gates_are_raw_so_that_a_router_with_one_expert_learns():
    method = build(AdaMVMoE, experts=4, top_k=1)
    sum(p.square().mean() for p in method.network(images(), list(TASKS)).predictions.values()).backward()
    assert all(matrix.weight.grad.any() for r in method.network.routers for matrix in r.matrices.values())


def test_a_run_changes_k_and_resumes_with_it(tmp_path):
    spec = toy_spec("adamv_moe", steps=20, arguments={"every": 2, "experts": 8})
    straight = trained(spec, str(tmp_path / "one"))
    assert straight["counts"][0].unique().numel() > 1 or straight["counts"][0][0] != 2
    stored = [value for key, value in straight.items() if key.endswith("_extra_state")]
    assert stored and all(torch.equal(value, straight["counts"][0]) for value in stored)
    assert trained(spec, str(tmp_path / "two"), stop_at=9) is None
    resumed = trained(spec, str(tmp_path / "two"))
    assert difference(straight, resumed) == 0


def test_extraction_keeps_the_final_k_of_the_task():
    method = build(AdaMVMoE, experts=8)
    for router in method.network.routers:
        router.use({"depth": 1, "normals": 3, "kind": 2})
    method.train()
    losses(method)  # fills the running tables
    method.eval()
    for task, count in (("depth", 1), ("normals", 3)):
        kept = kept_experts(method.network, list(TASKS), task, 0.0)
        alone = extract(method.network, task, kept)
        assert all(len(experts) >= count for experts in kept.values())
        assert_close(alone(images(), [task]).predictions[task], method.network(images(), [task]).predictions[task])
        assert [router.get_extra_state().tolist() for router in alone.routers] == [[count]] * 2


def test_arguments_out_of_range():
    for arguments in ({"top_k": 0}, {"top_k": 5, "experts": 8}, {"experts": 1}, {"every": 0}):
        with pytest.raises(MethodError, match="adamv_moe: "):
            build(AdaMVMoE, **arguments)
