"""KD-MTL: the distance to a teacher, the student's step, and the plan that trains teachers first."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from mtlbench.method import DEFAULT_OPTIMISER, MethodSpec, MTLMethod
from mtlbench.methods.plans.kd_mtl import KDMTL
from mtlbench.networks.dense import build_dense
from mtlbench.networks.knowledge_distillation import Adapters, direction_distance, taps
from mtlbench.runs.store import RunFolder
from mtlbench.testing import ToyData, difference, toy_spec, trained
from mtlbench.testing.toy import sourced
from mtlbench.training.loggers import read_rows
from tests.support.architectures import MODELS, TASKS, check_ownership, check_predictions, dense, images, made, model


def maps(*pixels):
    """Returns one image of 1 x N pixels (1, C, 1, N) from the features of its pixels."""
    return torch.tensor(pixels, dtype=torch.float64).T[None, :, None]


# ---- the distance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "wanted"), [
    ((1, 0), (0, 1), 2.0), ((1, 0), (0.5, math.sqrt(0.75)), 1.0), ((0.6, 0.8), (0.6, 0.8), 0.0), ((1, 0), (-1, 0), 4.0),
    ((3, 4), (30, 40), 0.0), ((0, 0), (0, 5), 1.0),
])  # fmt: skip
def test_goldens(one, other, wanted):
    assert_close(direction_distance(maps(one), maps(other)), torch.tensor(wanted).double(), atol=1e-5, rtol=0)


def test_pixels_and_images_are_averaged_and_channels_are_added():
    one, other = maps((1, 0), (1, 0), (2, 0)), maps((1, 0), (0, 1), (-3, 0))
    assert_close(direction_distance(one, other), torch.tensor(2.0).double(), atol=1e-5, rtol=0)
    x, y = np.random.default_rng(0).normal(size=(2, 3, 7, 4, 5))
    found = [
        ((x[b, :, h, w] / np.linalg.norm(x[b, :, h, w]) - y[b, :, h, w] / np.linalg.norm(y[b, :, h, w])) ** 2).sum()
        for b in range(3)
        for h in range(4)
        for w in range(5)
    ]
    assert float(direction_distance(torch.tensor(x), torch.tensor(y))) == pytest.approx(np.mean(found), rel=1e-6)


def test_the_length_of_a_feature_does_not_matter_and_zeros_have_a_gradient():
    torch.manual_seed(0)
    x, y = torch.randn(2, 2, 6, 3, 4, dtype=torch.float64)
    assert_close(direction_distance(x, 100 * y), direction_distance(x, 50 * y), rtol=1e-6, atol=0)
    zero = torch.zeros_like(x, requires_grad=True)
    direction_distance(zero, y).backward()
    assert zero.grad.isfinite().all() and zero.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_are_compared_in_float32(dtype):
    torch.manual_seed(0)
    x, y = (1000 * torch.randn(2, 2, 64, 3, 4)).to(dtype)  # a sum of squares that float16 does not hold
    assert_close(direction_distance(x, y), direction_distance(x.double(), y.double()).float())


# ---- taps and adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_student_is_the_dense_network_and_shows_its_taps(kind):
    net, plain = made("kd_mtl", kind).network, dense(kind)
    assert {k: v.tolist() for k, v in net.state_dict().items()} == {
        k: v.tolist() for k, v in plain.state_dict().items()
    }
    net.eval(), plain.eval()
    outputs, wanted = net(images(), list(TASKS)), plain(images(), list(TASKS))
    found = outputs.statistics["taps"]
    assert all(torch.equal(outputs.predictions[task], wanted.predictions[task]) for task in TASKS)
    assert torch.equal(found["encoder"], plain.encoder(plain.encoder.normalise(images()))[-1])
    assert torch.equal(found["decoder"], wanted.representation) and found["decoder"] is outputs.representation
    assert {tap: value.shape[1] for tap, value in found.items()} == net.tap_channels()
    assert all(torch.equal(value, found[tap]) for tap, value in taps(plain, images()).items())
    check_ownership(net)
    check_predictions(net)


def test_adapters_are_square_and_start_alike_whichever_other_tasks_there_are():
    torch.manual_seed(3)
    both = Adapters(["a", "b"], {"encoder": 6, "decoder": 4}).state_dict()
    torch.manual_seed(3)
    one = Adapters(["b"], {"encoder": 6, "decoder": 4}).state_dict()
    assert {name: tuple(w.shape) for name, w in both.items()} == {
        f"maps.{task}.{tap}.weight": (c, c, 1, 1) for task in "ab" for tap, c in (("encoder", 6), ("decoder", 4))
    }
    assert all(torch.equal(value, both[name]) for name, value in one.items())
    assert not torch.equal(both["maps.a.encoder.weight"], both["maps.b.encoder.weight"])


# ---- one step -------------------------------------------------------------------------------------------------------


def student(kind="vit", seed=11, **options):
    """Returns a method with teachers that started otherwise, in float64."""
    method = made("kd_mtl", kind, **options).double()
    torch.manual_seed(seed)
    teachers = {task: build_dense({task: TASKS[task]}, model(kind)).double().eval() for task in TASKS}
    method.use_sources(teachers)  # not frozen, as those of a run are: the rule itself must ask them for no gradient
    return method, teachers


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_regulariser_is_the_rule_written_out(kind):
    method, teachers = student(kind, weight=0.5, weights={"normals": 2.0})
    before = {task: [v.clone() for v in net.state_dict().values()] for task, net in teachers.items()}
    batch = {"image": images(3), "counts": {"depth": 0, "normals": 3, "kind": 0}}  # labels do not matter
    found = method.regularisation(method.network(batch["image"], list(TASKS)), batch)
    method.eval()  # but for BatchNorm in the student, which the reference sees as it was in training
    method.network.train()
    with torch.no_grad():
        own = taps(method.network, batch["image"])
    for task, factor in {"depth": 0.5, "normals": 1.0, "kind": 0.5}.items():
        wanted, given = 0.0, taps(teachers[task], batch["image"])
        for tap in ("encoder", "decoder"):
            matrix = method.adapters.maps[task][tap].weight[:, :, 0, 0]
            x, y = torch.einsum("dc,bchw->bdhw", matrix, own[tap]), given[tap]
            cosine = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
            wanted = wanted + (2 - 2 * cosine).mean()
        assert_close(found[f"distillation/{task}"], factor * wanted, rtol=1e-5, atol=0)
        assert_close(method.diagnostics()[f"distillation/{task}"], wanted.detach(), rtol=1e-5, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(before[task], teachers[task].state_dict().values(), strict=True))


def test_the_gradient_reaches_encoder_neck_and_own_adapters_but_no_head_and_no_teacher():
    method, teachers = student()
    found = method.regularisation(method.network(images(), list(TASKS)), {"image": images()})
    found["distillation/depth"].backward(retain_graph=True)
    touched = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name for name in touched if name.startswith("adapters.")} == {
        f"adapters.maps.depth.{tap}.weight" for tap in ("encoder", "decoder")
    }
    shared = {id(p) for p in method.network.shared_parameters(list(TASKS))}
    names = {name for name, p in method.named_parameters() if id(p) in shared}
    assert {name for name in touched if name.startswith("network.")} == names
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())


def test_teachers_are_no_part_of_the_method():
    method, teachers = student()
    kept = {*method.state_dict()}
    bare = made("kd_mtl")
    assert kept == {*bare.state_dict()} and not any("teacher" in name for name in kept)
    ours = {id(p) for p in method.parameters()}
    assert not any(id(p) in ours for teacher in teachers.values() for p in teacher.parameters())
    method.train()
    assert not any(teacher.training for teacher in teachers.values())


def test_teachers_go_where_the_student_is(monkeypatch):
    method, teachers = student()
    monkeypatch.setattr(MTLMethod, "on_train_start", lambda self: None)
    method.to("meta", torch.float32).on_train_start()
    found = {(p.device.type, p.dtype) for teacher in teachers.values() for p in teacher.parameters()}
    assert found == {("meta", torch.float32)}
    assert all(teacher.encoder.mean.device.type == "meta" for teacher in teachers.values())


@pytest.mark.parametrize("balancer", ["famo", "it_mtl"])
def test_a_look_ahead_asks_no_teacher(balancer, tmp_path):
    """Teachers run once per task and step, however many losses a rule wants to see."""
    spec = sourced(toy_spec("kd_mtl", balancer=balancer, steps=3, ragged=False, tasks=["shape", "far"]), str(tmp_path))
    with mock.patch("mtlbench.methods.plans.kd_mtl.taps", side_effect=taps) as asked:
        trained(spec, str(tmp_path))
    assert asked.call_count == 2 * 3


def test_the_papers_values_are_the_defaults():
    method = made("kd_mtl")
    groups = method.configure_optimizers()["optimizer"].param_groups
    (own,) = [group for group in groups if group["lr"] == 0.1]
    assert {id(p) for p in own["params"]} == {id(p) for p in method.adapters.parameters()}
    assert own["weight_decay"] == 5e-4 and method.weights == dict.fromkeys(TASKS, 1.0)


# ---- optimiser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_adapters_have_a_rate_and_a_decay_of_their_own_under_the_suites_schedule(name):
    optimiser = {**DEFAULT_OPTIMISER, "name": name, "lr": 0.004, "schedule": "poly", "weight_decay": 0.03}
    spec = MethodSpec(TASKS, model("vit"), optimiser, steps=10)
    method = KDMTL(spec, adapter_lr=0.2, adapter_decay=0.01)
    method.use_balancer(make_balancer("uncertainty"))
    method.configure_model()
    made_of = method.configure_optimizers()
    groups, schedule = made_of["optimizer"].param_groups, made_of["lr_scheduler"]["scheduler"]
    every = [id(p) for group in groups for p in group["params"]]
    assert len(every) == len(set(every)) and set(every) == {id(p) for p in method.parameters() if p.requires_grad}
    own = [group for group in groups if group["lr"] == 0.2]
    assert [group["weight_decay"] for group in own] == [0.01]
    assert {id(p) for p in own[0]["params"]} == {id(p) for p in method.adapters.parameters()}
    for step in range(4):
        assert [group["lr"] / (0.2 if group is own[0] else 0.004) for group in groups] == pytest.approx(
            [(1 - step / 10) ** 0.9] * 3
        )
        made_of["optimizer"].step()
        schedule.step()


# ---- training -------------------------------------------------------------------------------------------------------


def on_toy_data(folder, arguments=None, **changes):
    """Returns the final weights of a student on the toy data, and what it recorded."""
    spec = sourced(toy_spec("kd_mtl", arguments=arguments, **changes), str(folder))
    weights = trained(spec, str(folder))
    return weights, read_rows(RunFolder(folder, spec.run_id).path / "metrics.jsonl")


def network_of(weights):
    return {name: value for name, value in weights.items() if name.startswith("network.")}


@pytest.mark.parametrize("balancer", [None, "pcgrad"])
def test_without_weight_it_is_the_same_method_without_teachers(balancer, tmp_path):
    changes = {"steps": 4, "tasks": ["shape", "far"]}
    student, _ = on_toy_data(tmp_path, {"weight": 0.0}, balancer=balancer, **changes)
    plain = trained(toy_spec(balancer or "uniform", **changes), str(tmp_path / "plain"))
    assert difference(network_of(plain), network_of(student)) < 1e-9


def test_the_student_draws_near_to_its_teachers(tmp_path):
    changes = {"steps": 40, "ragged": False, "tasks": ["shape", "far"]}
    (_, rows), (_, others) = (on_toy_data(tmp_path, {"weight": weight}, **changes) for weight in (5.0, 0.0))
    for task in changes["tasks"]:
        key = f"distillation/{task}"
        found, without = ([row[key] for row in those if key in row] for those in (rows, others))
        assert len(found) == 40 and all(0 <= value <= 8 for value in found)
        assert np.mean(found[-4:]) < 0.5 * found[0] and np.mean(found[-4:]) < 0.7 * np.mean(without[-4:])


def test_a_task_without_labels_is_distilled_and_its_head_stays(tmp_path):
    tasks = ["shape", "far"]
    before, _ = on_toy_data(tmp_path, steps=3, tasks=tasks)
    after, _ = on_toy_data(tmp_path, steps=4, tasks=tasks)  # in the fourth step no image has a label of `shape`
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("network.heads.shape.") for name in changed)
    assert any(name.startswith("network.heads.far.") for name in changed)
    assert {name for name in before if name.startswith("adapters.")} < changed


def test_a_step_without_any_label_changes_nothing(tmp_path):
    def bare(steps):
        spec = toy_spec("kd_mtl", steps=steps, tasks=["shape", "far"])
        spec = replace(
            spec, data={"module": "tests.support.step_parts:Bare", "options": {}}
        )  # no label in the second step
        return trained(sourced(spec, str(tmp_path)), str(tmp_path))

    one, two, three = (bare(steps) for steps in (1, 2, 3))
    assert difference(one, two) == 0 and difference(two, three) > 1e-6


def test_two_micro_batches_are_one_batch(tmp_path):
    changes = {"steps": 4, "ragged": False, "tasks": ["kind", "mean"]}
    one, _ = on_toy_data(tmp_path, **changes)
    spec = sourced(toy_spec("kd_mtl", **changes), str(tmp_path))
    two = trained(replace(spec, trainer={**spec.trainer, "accumulate": 2}), str(tmp_path))
    assert difference(one, two) < 1e-9


def test_streams_ask_the_teachers_of_their_tasks(tmp_path):
    spec = sourced(toy_spec("kd_mtl", steps=3), str(tmp_path))
    spec = replace(spec, data={"module": "tests.support.step_parts:EqualStreams", "options": {}})
    weights = trained(spec, str(tmp_path))
    rows = read_rows(RunFolder(tmp_path, spec.run_id).path / "metrics.jsonl")
    assert all(0 < rows[0][f"distillation/{task}"] < 8 for task in ToyData.TASKS)
    assert all(value.isfinite().all() for name, value in weights.items() if name.startswith(("network", "adapters")))


def test_bfloat16_sees_the_distances_of_full_precision(tmp_path):
    changes = {"steps": 1, "ragged": False, "tasks": ["shape", "far"]}
    (_, full), (weights, half) = (
        on_toy_data(tmp_path / name, precision=name, **changes) for name in ("32-true", "bf16-mixed")
    )
    for task in changes["tasks"]:
        key = f"distillation/{task}"
        assert half[0][key] == pytest.approx(full[0][key], rel=0.03) and half[0][key] != full[0][key]
    assert all(value.dtype != torch.bfloat16 for value in weights.values())
    assert all(value.isfinite().all() for name, value in weights.items() if name.startswith(("network", "adapters")))


# ---- plan and errors ------------------------------------------------------------------------------------------------


def test_the_plan_trains_teachers_first_and_they_are_the_runs_of_single_task():
    spec = toy_spec("kd_mtl", balancer="pcgrad", tasks=["kind", "far"])
    plan = KDMTL.plan(spec)
    teachers = next(plan)
    single = spec.with_method(registry.record("single_task"))
    assert [run.run_id for run in teachers] == [
        run.run_id for run in next(registry.find("single_task").plan(replace(single, label="single_task")))
    ]
    (run,) = plan.send([{} for _ in teachers])
    assert run.method == spec.method and run.seed == spec.seed and list(run.tasks) == ["kind", "far"]
    assert {task: source["hash"] for task, source in run.sources.items()} == {
        next(iter(teacher.tasks)): teacher.hash for teacher in teachers
    }
    assert set(run.sources) == set(KDMTL.roles(list(spec.tasks)))
    with pytest.raises(StopIteration) as end:
        plan.send([{}])
    assert end.value.value == dict.fromkeys(["kind", "far"], run.run_id)


def test_a_run_outside_its_plan_is_refused(tmp_path):
    with pytest.raises(MethodError, match="every task needs one teacher.*teachers \\[\\].*mtlbench bench"):
        trained(toy_spec("kd_mtl", steps=1), str(tmp_path))
    with pytest.raises(MethodError, match="every task needs one teacher.*teachers \\['depth'\\]"):
        made("kd_mtl").use_sources({"depth": dense()})


@pytest.mark.parametrize(("options", "message"), [
    ({"weight": -1.0}, ">= 0.*-1"), ({"weight": math.nan}, ">= 0.*nan"),
    ({"weight": 0.0, "weights": {"depth": math.inf}}, "finite"), ({"weights": {"depth": "2"}}, "'2'"),
    ({"weights": [1.0, 2.0]}, "weights must map tasks"), ({"weights": {"dept": 2.0}}, "Did you mean 'depth'"),
    ({"adapter_lr": 0.0}, "adapter_lr must be positive"), ({"adapter_lr": math.nan}, "adapter_lr"),
    ({"adapter_decay": -0.1}, "adapter_decay"), ({"adapter_decay": math.inf}, "adapter_decay"),
])  # fmt: skip
def test_values_outside_their_range_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        made("kd_mtl", **options)
