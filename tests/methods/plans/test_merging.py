"""`task_arithmetic` and `ties`: the plan, the choice of λ, the merged network, and training of heads alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.networks.merging import task_arithmetic, ties
from mtlbench.runs.plan import foreseen
from mtlbench.testing import toy_spec, trained
from mtlbench.testing.toy import sourced
from tests.support.architectures import TASKS, dense, made
from tests.support.grouping_plans import begin, drive, expected, spec

NAMES = ("task_arithmetic", "ties")


def scored(gains, alone=2.0, split="validation"):
    """Returns results: every task scores ``alone`` alone, and after merging better by the gain of the run's λ."""

    def invent(run):
        gain = gains[run.method["arguments"]["scale"]] if run.sources else 0.0
        found = {}
        for task, about in run.tasks.items():
            sign = 1 if about["protocols"][0]["higher_is_better"] else -1
            found[task] = {about["protocols"][0]["id"]: alone * (1 + sign * gain)}
        return {"validation": found if split else None, "scores": {}, "summary": {}}

    return invent


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_reuses_single_task_runs_and_takes_the_best_scale_on_validation(name):
    line = replace(spec(name, scales=[0.2, 0.5, 0.9], realign=0.25), optimiser={**spec(name).optimiser, "warmup": 8})
    stages, ending = drive(line, scored({0.2: -0.1, 0.5: 0.05, 0.9: -0.3}))
    single = line.with_method(registry.record("single_task"))
    assert [run.run_id for run in stages[0]] == [single.with_tasks(task).run_id for task in line.tasks]
    tried = stages[1]
    assert [run.method["arguments"]["scale"] for run in tried] == [0.2, 0.5, 0.9]
    assert {run.trainer["steps"] for run in tried} == {5} and {run.optimiser["warmup"] for run in tried} == {2}
    assert {task: source["run"] for task, source in tried[0].sources.items()} == {
        next(iter(run.tasks)): run.run_id for run in stages[0]
    }
    assert set(ending.serving.values()) == {tried[1].run_id}
    assert ending.record["scale"] == 0.5 and ending.record["gains"] == pytest.approx([-10.0, 5.0, -30.0])


def test_without_a_further_split_the_default_is_used():
    line = spec("task_arithmetic")
    stages, ending = drive(line, scored({0.3: 0.0}, split=None))
    assert [run.method["arguments"]["scale"] for run in stages[1]] == [0.3] == [ending.record["scale"]]
    assert "no further split" in ending.record["note"] and ending.record["gains"] == [None]


def test_a_scale_whose_gain_is_undefined_is_not_chosen():
    line = spec("ties", scales=[0.5, 1.0])
    _, ending = drive(line, scored({0.5: float("nan"), 1.0: -0.4}))
    assert ending.record["scale"] == 1.0 and ending.record["gains"][0] is None
    _, ending = drive(line, scored({0.5: 0.0, 1.0: 0.0}, alone=0.0))
    assert ending.record["scale"] == 0.5, "no gain is known: the first"


def test_its_cost_is_not_known_beforehand():
    with pytest.raises(MethodError, match="must be known beforehand"):
        foreseen(begin(spec("ties")))


def test_a_row_of_one_seed_shares_its_single_task_runs_with_others():
    line = spec("ties")
    assert [run.run_id for run in next(begin(line))] == [expected(line, task) for task in line.tasks]


# ---- the network ----------------------------------------------------------------------------------------------------


def moved(task, kind, seed):
    """Returns the single-task network of a task, which started as the merged one does and has moved."""
    torch.manual_seed(7)
    network = dense(kind, {task: TASKS[task]})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + seed)
    return network


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_network_is_the_rule_on_all_shared_parameters(name, kind):
    method, start = made(name, kind, scale=0.4), dense(kind)
    sources = {task: moved(task, kind, seed) for seed, task in enumerate(TASKS)}
    method.use_sources(sources)
    merge = (lambda c: task_arithmetic(c, 0.4)) if name == "task_arithmetic" else (lambda c: ties(c, 0.2, 0.4))
    shared = [key for key, _ in start.named_parameters() if not key.startswith("heads.")]
    before, after = dict(start.named_parameters()), dict(method.network.named_parameters())
    flat = {task: dict(net.named_parameters()) for task, net in sources.items()}
    changes = torch.stack([torch.cat([(flat[t][k] - before[k]).flatten() for k in shared]) for t in TASKS]).detach()
    found = torch.cat([(after[k] - before[k]).flatten() for k in shared]).detach()
    assert_close(found, merge(changes), atol=1e-6, rtol=1e-5)
    for task, net in sources.items():
        own = method.network.heads[task].state_dict()
        assert all(torch.equal(value, own[key]) for key, value in net.heads[task].state_dict().items())
    means = [b for key, b in method.network.named_buffers() if key.endswith("running_var") and "heads" not in key]
    assert all((b > 1).all() and (b < 2).all() for b in means) and bool(means) == (kind == "cnn")
    described = method.summary()["merging"]
    assert described["lengths"]["depth"] == pytest.approx(float(changes[0].norm()), rel=1e-5)


def test_one_task_and_scale_one_restore_its_network():
    only = {"depth": TASKS["depth"]}
    source = moved("depth", "vit", 3)
    for name, options in (("task_arithmetic", {}), ("ties", {"keep": 1.0})):
        method = made(name, tasks=only, scale=1.0, **options)
        method.use_sources({"depth": source})
        for key, value in source.state_dict().items():
            assert_close(method.network.state_dict()[key], value)


def test_single_task_runs_of_a_seed_start_like_the_merged_network(tmp_path):
    """A merged run whose sources have trained for no step at all would be its own start: τ is what they learned."""
    run = sourced(
        toy_spec("task_arithmetic", steps=1, tasks=["kind", "far"], arguments={"scale": 1e-12}), str(tmp_path)
    )
    merged = trained(run, str(tmp_path))
    plain = trained(toy_spec("uniform", steps=1, tasks=["kind", "far"], arguments={}), str(tmp_path), nudge=0.0)
    shared = [key for key in plain if key.startswith("network.") and ".heads." not in key]
    # One step of AdamW at rate 0.01 moves every parameter by about 0.01, and λ = 1e-12 by nothing.
    gaps = torch.stack([(merged[key] - plain[key]).abs().max() for key in shared])
    assert gaps.max() < 0.0101


def test_heads_alone_are_trained(tmp_path):
    spec_ = sourced(toy_spec("ties", steps=4, tasks=["kind", "far"]), str(tmp_path))
    one = trained(spec_, str(tmp_path))
    fewer = replace(spec_, trainer={**spec_.trainer, "steps": 2})
    two = trained(fewer, str(tmp_path))
    changed = {key for key in one if not torch.equal(one[key], two[key])}
    assert changed and all(".heads." in key for key in changed)


def test_bad_values_and_missing_networks_are_refused(tmp_path):
    wrong = ({"scale": 0.0}, {"scales": [0.5, -1.0]}, {"realign": 0.0}, {"realign": 1.5}, {"scales": ["a"]})
    for name in NAMES:
        for arguments in wrong:
            with pytest.raises(MethodError, match="must be"):
                made(name, **arguments)
        with pytest.raises(MethodError, match="every task needs one single-task network"):
            made(name).use_sources({"depth": dense()})
        with pytest.raises(MethodError, match="mtlbench bench"):
            trained(toy_spec(name, steps=1), str(tmp_path / name))
    with pytest.raises(MethodError, match="keep, a share"):
        made("ties", keep=0.0)
