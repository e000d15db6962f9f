"""What `MTLMethod` and `ExpertMethod` promise beside the step: defaults, answers, names in messages, tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from mtlbench import registry
from mtlbench.data import Collate
from mtlbench.errors import DataError, DivergedError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import (
    OPTIMISERS,
    align_gradients,
    build_optimiser,
    build_schedule,
    fused_on_cpu,
    slowed,
)
from mtlbench.networks.dense import build_dense
from mtlbench.networks.experts import mutual_information
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.runs.store import RunFolder
from mtlbench.tasks import Depth
from mtlbench.testing import ToyData, toy_spec, trained
from mtlbench.training import checkpoint
from mtlbench.training.build import build_with_network

TINY = "tests.support.step_parts:Tiny"
NAMES = list(ToyData.TASKS)


def test_a_spec_by_hand_is_one_step_of_a_constant_rate():
    spec = MethodSpec({})
    assert (spec.steps, spec.steps_per_epoch, spec.seed, spec.diagnose_every, spec.surgery) == (1, 1, 0, 0, "auto")
    assert spec.optimiser == {
        "name": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "momentum": 0.9, "schedule": "constant", "warmup": 0,
        "power": 0.9, "encoder_rate": 1.0,
    }  # fmt: skip
    assert MTLMethod.PHASES is False and MTLMethod.roles(["a"]) == {}


def test_a_method_answers_for_all_tasks_or_some():
    method = build_with_network(toy_spec(TINY, precision="32-true"))[0].eval()
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    every = method(image)
    assert list(every) == NAMES and list(method(image, ["far", "kind"])) == ["far", "kind"]
    assert torch.equal(method(image, ["far"])["far"], every["far"])
    with pytest.raises(DataError, match=r"uint8, 0..255. Found torch.float32"):
        method(image.float())


def test_the_first_bad_step_is_reported_with_the_tasks_of_that_step_alone():
    method = build_with_network(toy_spec(TINY))[0]
    assert method.bad_step.tolist() == [-1] * 4 and method.last_losses is None
    method.check_finite()
    for bad, message in (
        ([0, -1, -1, 5], "of kind was not at step 0"),
        ([-1, 7, 9, 7], "of shape, mean was not at step 7"),
    ):
        method.bad_step.copy_(torch.tensor(bad))
        with pytest.raises(DivergedError, match=message):
            method.check_finite()


def test_a_network_is_built_once_and_its_parameters_are_sorted():
    method = build_with_network(toy_spec(TINY, balancer="uncertainty"))[0]
    network = method.network
    method.configure_model()
    assert method.network is network
    matrices, rest = method.parameter_groups()
    assert "weight_decay" not in matrices and rest["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in matrices["params"]) and all(p.ndim <= 1 for p in rest["params"])
    own = {id(p) for p in method.balancer.parameters()}
    assert own and own <= {id(p) for p in rest["params"]} and own == {id(p) for p in method.surgery.rest}
    assert len(matrices["params"]) + len(rest["params"]) == len(list(method.parameters()))
    next(network.parameters()).requires_grad_(requires_grad=False)
    assert sum(len(group["params"]) for group in method.parameter_groups()) == len(list(method.parameters())) - 1


@pytest.mark.parametrize(("name", "hooks"), [
    ("uniform", ()), ("famo", ("combine_losses",)), ("mgda", ("gradient_weights",)),
    ("graddrop", ("combine_gradients",)),
])  # fmt: skip
def test_which_hooks_are_in_use(name, hooks):
    method = build_with_network(toy_spec(TINY, balancer=name))[0]
    known = ("combine_losses", "gradient_weights", "combine_gradients")
    assert tuple(hook for hook in known if method.uses(hook)) == hooks


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["task_moe", "mod_squad"])
def test_the_tables_of_experts_are_of_the_whole_step(name, accumulate, tmp_path):
    """After one step they hold means over its eight images, as a forward pass of the first weights finds them."""
    spec = toy_spec(name, steps=1, accumulate=accumulate, ragged=False, arguments={"experts": 4, "top_k": 2})
    method, data = build_with_network(spec)
    samples = data.samples("train")
    batch = Collate(ToyData.TASKS)([samples[i] for i in range(8)])
    with torch.no_grad():
        expected = method.network.train()(batch["image"], NAMES).statistics["experts"]
    trained(spec, str(tmp_path))
    folder = RunFolder(tmp_path, spec.run_id).path
    state = checkpoint.load(folder / "final.ckpt")["state_dict"]
    (row,) = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "lr" in row]
    told = json.loads((folder / "summary.json").read_text())["experts"]
    assert told["tasks"] == NAMES and set(told["layers"]) == set(expected) == set(told["top_k"])
    tables = {key: [v for k, v in state.items() if k.endswith(f"running.{key}")] for key in ("probability", "load")}
    for layer, found in expected.items():
        for key, wanted in (("probability", found.probability), ("load", found.load)):
            assert any(torch.allclose(wanted, table, rtol=1e-9) for table in tables[key])
            rounded = torch.tensor(told["layers"][layer][key], dtype=torch.float64)
            assert (rounded - wanted).abs().max() <= 5.1e-7 and torch.equal(rounded, wanted.round(decimals=6))
        information = float(mutual_information(found.probability))
        assert row[f"experts/{layer}/mutual_information"] == pytest.approx(information)
        shares = [row[f"experts/{layer}/load/{expert}"] for expert in range(found.load.shape[1])]
        assert shares == pytest.approx(found.load.mean(0).tolist())
    assert len(tables["load"]) == len(expected)


def test_tasks_run_one_by_one_where_each_needs_its_own_gradient(tmp_path, monkeypatch):
    found = {}
    for name, every in (("uniform", 0), ("uniform", 2), ("pcgrad", 0)):
        seen = found[name, every] = []
        cls = registry.find("task_moe")
        monkeypatch.setattr(cls, "regularisation", lambda self, *_, seen=seen: seen.append(self.network.separate) or {})
        trained(toy_spec("task_moe", balancer=name, steps=3, local={"diagnose_every": every}), str(tmp_path))
    assert found == {
        ("uniform", 0): [False] * 3, ("uniform", 2): [True, False, True], ("pcgrad", 0): [True] * 3,
    }  # fmt: skip


@pytest.mark.parametrize(("schedule", "rates"), [
    ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]), ("cosine", [0.5, 1, 1, 0.75, 0.25, 0, 0, 0]),
    ("poly", [0.5, 1, 1, 4 / 9, 1 / 9, 0, 0, 0]),
])  # fmt: skip
def test_rates_by_hand(schedule, rates):
    """Two steps of warm-up, then three of the schedule; steps after the last keep its rate."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    config = {"name": "sgd", "lr": 8.0, "weight_decay": 0.5, "momentum": 0.25}
    optimiser = build_optimiser([{"params": [parameter]}, {"params": []}], config)
    (group,) = optimiser.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.25, 0.5, False)
    found = []
    plan = build_schedule(optimiser, {"schedule": schedule, "warmup": 2, "power": 2.0}, 5)
    for _ in rates:
        found.append(group["lr"] / 8.0)
        optimiser.step()
        plan.step()
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_pass_through_memory_takes_the_steps_of_several(name: str) -> None:
    """Fused against one tensor at a time, also where a gradient lies in memory in another order than its parameter."""
    shapes = ((6, 4), (5,), (2, 3, 4, 4))
    values = [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    one, other = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    config = {"name": name, "lr": 0.1, "weight_decay": 0.1}
    fused = build_optimiser([{"params": one[:1]}, {"params": one[1:], "weight_decay": 0.0}], config)
    groups: list[dict[str, Any]] = [{"params": other[:1]}, {"params": other[1:], "weight_decay": 0.0}]
    plain = OPTIMISERS[name](groups, lr=0.1, weight_decay=0.1, foreach=False)
    assert all(group["fused"] for group in fused.param_groups)
    for step in range(4):
        torch.manual_seed(step)
        for p, q in zip(one, other, strict=True):
            turned = torch.randn(*reversed(p.shape)).permute(*reversed(range(p.ndim)))
            p.grad, q.grad = turned, turned.clone()
        align_gradients(fused)
        fused.step()
        plain.step()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_gradient_keeps_the_memory_format_of_its_parameter() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimiser, given = torch.optim.AdamW([parameter], fused=True), torch.randn(2, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter.grad = given.clone(memory_format=layout)
        align_gradients(optimiser)
        assert parameter.grad.stride() == parameter.stride() and parameter.grad.equal(given)


def test_the_user_chooses_kernels_and_narrow_numbers_keep_theirs() -> None:
    wide, narrow = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    made = torch.optim.AdamW([{"params": [wide], "foreach": True}, {"params": [narrow]}])
    assert [fused_on_cpu(group) for group in made.param_groups] == [{}, {}]
    assert fused_on_cpu(torch.optim.SGD([wide]).param_groups[0]) == {}


def test_slowed_parameters_take_a_share_of_the_rate_of_their_group() -> None:
    fast, slow, own = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    groups = slowed(
        [{"params": [fast, slow]}, {"params": [own], "lr": 0.5, "weight_decay": 0.0}], [slow, own], 0.1, 2.0
    )
    found = [(group["params"], group.get("lr"), group.get("weight_decay")) for group in groups if group["params"]]
    assert [len(params) for params, *_ in found] == [1, 1, 1] and found[0][0][0] is fast and found[0][1] is None
    assert found[1][0][0] is slow and found[1][1] == pytest.approx(0.2)
    assert found[2][0][0] is own and found[2][1:] == (pytest.approx(0.05), 0.0)


def test_the_rate_of_the_encoder_leaves_heads_and_routers_alone() -> None:
    tasks = {"depth": Depth("depth")}
    model = {"encoder": "stem_vit_tiny", "image_size": (32, 32), "decoder_channels": 8}
    dense = build_dense(tasks, model)
    slow = {id(p) for p in dense.encoder_parameters()}
    assert slow == {id(p) for p in dense.encoder.parameters()}
    experts = ExpertNetwork(tasks, ExpertOptions(experts=2, top_k=1), **model)
    slow = {id(p) for p in experts.encoder_parameters()}
    assert not slow & {id(p) for layer in experts.layers.values() for p in layer.parameters()}
    assert id(experts.encoder.model.patch_embed.to_fine[0][0].weight) in slow
