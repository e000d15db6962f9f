"""One task taken out: equal where routes stay inside, smaller by formula, loadable without training code."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mtlbench.errors import MethodError, StoreError
from mtlbench.methods.experts.m3vit import M3ViT
from mtlbench.methods.experts.mod_squad import ModSquad
from mtlbench.methods.experts.moe import MoE
from mtlbench.methods.experts.task_moe import TaskMoE
from mtlbench.networks.experts.extracted import describe, load_extracted, save
from mtlbench.networks.experts.extraction import extract, kept_experts, outside, routes, surviving
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.training.extraction_report import expert_network
from tests.support.command_line import SMALL, mtlbench
from tests.support.expert_methods import TASKS, build, images, losses

FORMS = {
    "mod_squad": (ModSquad, {"experts": 6, "top_k": 2}),
    "raw gates": (ModSquad, {"experts": 6, "top_k": 2, "renormalise": False}),
    "task_moe": (TaskMoE, {"experts": 6}),
    "described": (TaskMoE, {"experts": 6, "gate": "description", "descriptions": dict.fromkeys(TASKS, [1.0, 2.0])}),
    "copies": (TaskMoE, {"experts": 4, "start": "copy", "top_k": 1, "gate": "per_task"}),
    "m3vit": (M3ViT, {"experts": 6, "top_k": 2}),
    "moe": (MoE, {"experts": 6}),
}


def trained(form):
    """A method whose routers have opinions, and whose running tables know them."""
    cls, options = FORMS[form]
    method = build(cls, **options)
    with torch.no_grad():
        for router in method.network.routers:
            for parameter in router.parameters():
                parameter.mul_(20)
    losses(method, images(16))
    method.eval()
    return method


@pytest.mark.parametrize(
    ("load", "threshold", "top_k", "kept"),
    [
        ([0.5, 0.3, 0.2, 0.0], 0.0, 2, [0, 1, 2]),  # every used expert
        ([0.5, 0.3, 0.2, 0.0], 0.45, 2, [0, 1]),  # shares of tokens: 1.0, 0.6, 0.4, 0
        ([0.0, 0.1, 0.0, 0.9], 0.9, 2, [1, 3]),  # at least k, by use
        ([0.25, 0.25, 0.25, 0.25], 0.9, 1, [0]),  # ties: the first
    ],
)
def test_what_survives(load, threshold, top_k, kept):
    assert surviving(load, threshold, top_k) == kept


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 2.0, float("nan")])
def test_a_threshold_that_keeps_nothing_is_refused(threshold):
    with pytest.raises(MethodError, match="no expert can exceed"):
        surviving([0.5, 0.5], threshold, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", ["depth", "kind"])
def test_the_extracted_network_answers_as_the_whole_one_where_routes_stay_inside(form, task):
    method, image = trained(form), images(24)
    network = method.network
    kept = kept_experts(network, list(TASKS), task, 0.02)
    alone = extract(network, task, kept)
    with torch.no_grad(), routes(network) as chosen:
        whole = network(image, [task]).predictions[task]
        found = alone(image, [task]).predictions[task]
    leaves = outside(chosen, kept, len(image)).any(1)
    assert not leaves.all()
    torch.testing.assert_close(found[~leaves], whole[~leaves], rtol=1e-5, atol=1e-5)


def test_slicing_the_routers_of_raw_gates_gives_another_network():
    """What must fail: the softmax over the kept experts alone, where extraction keeps the whole denominator."""
    network = build(ModSquad, experts=12, top_k=2, attention_experts=8, renormalise=False).network.eval()
    with torch.no_grad():
        for parameter in network.encoder.blocks.parameters():
            parameter.mul_(10)
    image = images(1)
    with torch.no_grad(), routes(network) as chosen:
        whole = network(image, ["depth"]).predictions["depth"]
    kept = {name: choice.unique().tolist() for name, choice in chosen.items()}  # all that this image needs
    assert sum(map(len, kept.values())) < sum(layer.experts.experts for layer in network.layers.values())
    alone, sliced = extract(network, "depth", kept), extract(network, "depth", kept)
    for name, layer in sliced.layers.items():
        matrix = layer.router.matrices["depth"]
        matrix.weight = torch.nn.Parameter(matrix.weight[kept[name]])
        layer.router.kept = None
    with torch.no_grad():
        right, wrong = (n(image, ["depth"]).predictions["depth"] for n in (alone, sliced))
    torch.testing.assert_close(right, whole, rtol=1e-5, atol=1e-5)
    assert (wrong - whole).norm() > 0.005 * whole.norm()


def test_routes_that_leave_are_counted():
    method, image = trained("mod_squad"), images(8)
    whole = {name: list(range(layer.experts.experts)) for name, layer in method.network.layers.items()}
    with torch.no_grad(), routes(method.network) as chosen:
        method.network(image, ["depth"])
    assert not outside(chosen, whole, 8).any()
    name, choice = next(iter(chosen.items()))
    missing = choice[0, 0].item()
    lacking = {**whole, name: [e for e in whole[name] if e != missing]}
    expected = (choice == missing).any(1).view(8, -1)
    assert torch.equal(outside(chosen, lacking, 8), expected) and expected.any()


@pytest.mark.parametrize("form", ["mod_squad", "task_moe", "moe"])
def test_nothing_of_other_tasks_stays_and_parameters_are_those_of_the_formula(form):
    method = trained(form)
    network, task = method.network, "normals"
    kept = kept_experts(network, list(TASKS), task, 0.02)
    alone = extract(network, task, kept)
    gone = {id(p) for other in TASKS if other != task for p in network.task_parameters(other)}
    expected = sum(p.numel() for p in network.parameters() if id(p) not in gone)
    for name, layer in network.layers.items():
        lost = layer.experts.experts - len(kept[name])
        per_expert = sum(p[0].numel() for k, p in layer.experts.named_parameters() if "key_value" not in k)
        rows = [m for m in (layer.router.token, layer.router.task) if m is not None]
        rows += [layer.router.matrices[task]] if layer.router.matrices else []
        expected -= lost * (per_expert + sum(m.weight.shape[1] for m in rows))
    assert sum(p.numel() for p in alone.parameters()) == expected
    assert not any(other in name for name, _ in alone.named_parameters() for other in ("depth", "kind"))


def test_a_larger_threshold_keeps_a_subset():
    network = trained("mod_squad").network
    small, large = (kept_experts(network, list(TASKS), "depth", t) for t in (0.0, 0.3))
    assert all(set(large[name]) <= set(small[name]) for name in small) and large != small


def test_unknown_and_untrained_tasks():
    method = trained("mod_squad")
    with pytest.raises(MethodError, match="Did you mean 'depth'"):
        kept_experts(method.network, list(TASKS), "dept", 0.1)
    fresh = build(ModSquad, experts=4, top_k=2)
    with pytest.raises(MethodError, match="no label in training"):
        kept_experts(fresh.network, list(TASKS), "depth", 0.1)


@pytest.mark.parametrize("form", FORMS)
def test_on_disk_and_back(form, tmp_path):
    method, image = trained(form), images(3)
    kept = kept_experts(method.network, list(TASKS), "depth", 0.02)
    alone = extract(method.network, "depth", kept)
    save(alone, describe(TASKS["depth"], method.spec.model, method.options, kept, {"run_id": "x"}), tmp_path)
    loaded = load_extracted(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(image), alone(image, ["depth"]).predictions["depth"])
    assert loaded.description["kept"] == kept and loaded.description["kind"] == "depth"


@pytest.mark.parametrize("form", ["copies", "task_moe"])
def test_folders_of_before_the_argument_was_renamed_are_read(form, tmp_path):
    """They call `init` ``start``."""
    method, image = trained(form), images(3)
    kept = kept_experts(method.network, list(TASKS), "depth", 0.02)
    alone = extract(method.network, "depth", kept)
    description = describe(TASKS["depth"], method.spec.model, method.options, kept, {})
    description["options"]["start"] = description["options"].pop("init")
    save(alone, description, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_extracted(tmp_path)(image), alone(image, ["depth"]).predictions["depth"])


def test_loading_needs_no_training_code(tmp_path):
    method = trained("mod_squad")
    kept = kept_experts(method.network, list(TASKS), "depth", 0.02)
    description = describe(TASKS["depth"], method.spec.model, method.options, kept, {})
    save(extract(method.network, "depth", kept), description, tmp_path)
    program = (
        "import sys, torch, mtlbench\n"
        f"model = mtlbench.load_extracted({str(tmp_path)!r})\n"
        "print(tuple(model(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).shape))\n"
        "print([m for m in ('lightning', 'mtlbench.method', 'mtlbench.training.run') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 1, 16, 24)", "[]"]


def test_damaged_files(tmp_path):
    method = trained("mod_squad")
    kept = kept_experts(method.network, list(TASKS), "depth", 0.02)
    description = describe(TASKS["depth"], method.spec.model, method.options, kept, {})
    with pytest.raises(StoreError, match="mtlbench extract. again"):
        load_extracted(tmp_path)
    save(extract(method.network, "depth", kept), {**description, "format": 99}, tmp_path)
    with pytest.raises(StoreError, match="format 99"):
        load_extracted(tmp_path)
    other = {name: list(range(len(experts) + 1)) for name, experts in kept.items()}
    (tmp_path / "model.json").write_text(json.dumps({**description, "kept": other}))
    with pytest.raises(StoreError, match="mtlbench extract. again"):
        load_extracted(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"format": 1, "outputs": {}}))
    with pytest.raises(StoreError, match="use mtlbench.load_exported"):
        load_extracted(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(StoreError, match="mtlbench extract. again"):
        load_extracted(tmp_path)


@pytest.mark.parametrize(
    ("cls", "tasks", "remedy"),
    [
        (torch.nn.Identity, "ab", "or give a run of a method"),
        (torch.nn.Identity, "a", "Write it as it is: `mtlbench export` without"),
        (PrunedNetwork, "ab", "`mtlbench extract` writes one task"),
    ],
)
def test_a_network_without_experts_is_refused_with_what_to_do(cls, tasks, remedy):
    loaded = SimpleNamespace(
        method=SimpleNamespace(network=cls.__new__(cls), tasks=dict.fromkeys(tasks)),
        result={"run_id": "x-s0-1", "method": "x"},
    )
    with pytest.raises(MethodError, match=f"needs a network with experts. x-s0-1 was trained by 'x'.*{remedy}"):
        expert_network(loaded)


def answers_alike(folder):
    """Asserts that an exported program gives the same logits for any number of images, where this package is absent."""
    model = load_extracted(folder)
    batches = [torch.randint(0, 256, (size, 3, 24, 32), dtype=torch.uint8) for size in (1, 3, 7)]
    with torch.no_grad():
        torch.save([(images, model(images)) for images in batches], folder / "pairs.pt")
    program = (
        "import sys, torch\n"
        f"model = torch.export.load({str(folder / 'program.pt2')!r}).module()\n"
        f"for images, wanted in torch.load({str(folder / 'pairs.pt')!r}):\n"
        "    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)\n"
        "    print(len(images), wanted.std().item() > 1e-3)\n"
        "print([m for m in sys.modules if m.startswith(('mtlbench', 'timm'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1 True", "3 True", "7 True", "[]"]


def test_the_command(tmp_path):
    """From a run on disk to a file that answers; what cannot be is refused."""
    suite = tmp_path / "small.yaml"
    text = """
name: small
version: 1
data: {module: "data_modules.digits:Digits"}
tasks: {left: {}, segments: {}}
model: {encoder: vit_tiny_patch16_224, encoder_options: {patch_size: 4, depth: 2}, image_size: [24, 32]}
floor: false
methods: [uniform, {name: mod_squad, experts: 4, top_k: 2}]
"""
    suite.write_text(text)
    answer = mtlbench(tmp_path, "bench", str(suite), "trainer.steps=3", *SMALL, "--jobs", "1")
    assert answer.code == 0, answer.text
    (run,) = (tmp_path / "results/small").glob("mod_squad-*")
    (other,) = (tmp_path / "results/small").glob("uniform-*")
    report = mtlbench(tmp_path, "extract", str(run), "--task", "segments")
    assert report.code == 0 and report.text.count("100%") == 1 and "whole" in report.text
    out = mtlbench(tmp_path, "extract", str(run), "--task", "left", "--threshold", "0.1", "--out", "left")
    assert out.code == 0 and "load_extracted('left')" in out.text
    assert load_extracted(tmp_path / "left")(torch.zeros(2, 3, 24, 32, dtype=torch.uint8)).shape == (2, 10)
    words = ("--task", "left", "--threshold", "0.1")
    assert mtlbench(tmp_path, "extract", str(run), *words, "--out", "left", "--export").code == 0
    answers_alike(tmp_path / "left")
    for chosen, message in (
        ((str(other), "--task", "left"), "trained by 'uniform'"),
        ((str(other), "--task", "left", "--out", "x"), "trained by 'uniform'"),  # A threshold would not help.
        ((str(run), "--task", "lft"), "Did you mean 'left'"),
        ((str(run), "--task", "left", "--threshold", "1"), "no expert can exceed"),
        ((str(run), "--out", "x"), "--task and --threshold"),
        ((str(run), *words, "--export"), "Give --out with --export"),
        ((str(tmp_path / "nowhere"), "--task", "left"), "is not a run's folder"),
    ):
        refused = mtlbench(tmp_path, "extract", *chosen)
        assert refused.code == 2 and message in refused.text, refused.text
    experts = json.loads((tmp_path / "results/small/experts.json").read_text())
    assert experts["mod_squad"]["tasks"] == ["left", "segments"] and len(experts["mod_squad"]["layers"]) == 2
    page = (tmp_path / "results/small/report.html").read_text()
    for title in ("Task similarity by expert usage", "Mutual information between tasks and experts"):
        assert title in page
