"""Single task: its plan, and the one-task step of every other method."""

from __future__ import annotations

import pytest
import torch

from mtlbench import registry
from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import Balancer
from mtlbench.errors import MethodError
from mtlbench.methods.plans.single_task import SingleTask
from mtlbench.testing import ToyData, difference, toy_spec, trained


def test_the_plan_is_one_run_per_task():
    spec = toy_spec("single_task")
    plan = SingleTask.plan(spec)
    runs = next(plan)
    assert [list(run.tasks) for run in runs] == [[name] for name in ToyData.TASKS]
    assert len({run.run_id for run in runs}) == len(runs)
    with pytest.raises(StopIteration) as end:
        plan.send([{} for _ in runs])
    assert end.value.value == {name: run.run_id for name, run in zip(ToyData.TASKS, runs, strict=True)}


def test_runs_do_not_depend_on_the_suites_other_tasks():
    few, all_ = toy_spec("single_task", tasks=["far", "kind"]), toy_spec("single_task")
    ids = [{next(iter(run.tasks)): run.run_id for run in next(SingleTask.plan(spec))} for spec in (few, all_)]
    assert ids[0].items() <= ids[1].items()


BALANCERS = [name for name in registry.shipped() if issubclass(registry.find(name), Balancer)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(toy_spec("single_task", steps=3, tasks=["far"]), str(tmp_path_factory.mktemp("alone")))


def _network(weights):
    return {name: value for name, value in weights.items() if name.startswith("network.")}


SCALED = {"cagrad", "db_mtl", "fairgrad", "moco", "nash_mtl"}
"""Rules that keep the direction of a single gradient and change its length, as their docstrings say."""

CUT = {"sdmgrad", "modo"}
"""Rules that step along the gradient of a third of the batch."""


@pytest.mark.parametrize("name", BALANCERS)
def test_a_rule_with_one_task_keeps_the_direction(name):
    gradient = torch.tensor([[3.0, -4.0, 0.5]], dtype=torch.float64)
    found = make_balancer(name).direction(gradient, torch.tensor([0.7], dtype=torch.float64))
    length = found.norm() / gradient.norm()
    assert length > 0.05
    torch.testing.assert_close(found, length * gradient[0])
    if name not in SCALED:
        assert float(length) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in BALANCERS if name not in SCALED | CUT])
def test_a_rule_with_one_task_is_the_single_task_step(name, alone, tmp_path):
    changes = {"steps": 3}
    if name in ("uncertainty", "imtl", "imtl_l"):
        # Its parameter moves and takes part in clipping: only the first, unclipped step is that of one task alone.
        changes = {"steps": 1, "clip": 0.0}
        alone = trained(toy_spec("single_task", tasks=["far"], **changes), str(tmp_path / "alone"))
    found = trained(toy_spec(name, tasks=["far"], **changes), str(tmp_path / "one"))
    assert difference(_network(alone), _network(found)) < 1e-6


def test_it_is_no_balancer():
    with pytest.raises(MethodError, match="not|subclass"):
        make_balancer("single_task")
