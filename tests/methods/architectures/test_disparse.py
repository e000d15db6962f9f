"""DiSparse: what tasks agree on, the density, weights that stay 0, and masks that change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.methods.architectures.disparse import DiSparse
from mtlbench.networks import pruning
from mtlbench.networks.experts.extracted import load_extracted
from mtlbench.networks.pruning import layer_densities, needed_ratios, overlaps, places, ratio_for
from mtlbench.runs.store import RunFolder
from mtlbench.testing import check_method, toy_spec, trained
from mtlbench.training.load import load_run
from mtlbench.training.run import train
from tests.support.architectures import TASKS, check_ownership, dense, images, made, network
from tests.support.command_line import mtlbench

NONE = torch.zeros(0)
NAMES = ["far", "kind"]


def pruned_weights(state):
    """Returns the weights and masks of a checkpoint, by name of the weight."""
    masks = {k.removeprefix("network.masks.").replace("/", "."): v for k, v in state.items() if ".masks." in k}
    return {name: (state[f"network.{name}"], mask) for name, mask in masks.items()}


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_a_weight_is_pruned_only_if_all_tasks_agree():
    one, two = torch.tensor([0.9, 0.5, 0.1, 0.2]), torch.tensor([0.1, 0.2, 0.8, 0.6])
    assert (needed_ratios([one], [NONE])[0] <= 0.5).tolist() == [True, True, False, False]
    assert (needed_ratios([two], [NONE])[0] <= 0.5).tolist() == [False, False, True, True]
    assert (needed_ratios([one, two], [NONE, NONE])[0] <= 0.5).all()
    assert overlaps([one, two], [NONE, NONE], 0.5).tolist() == [[1, 0], [0, 1]]


def test_with_equal_scores_the_density_is_the_ratio():
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    needed, _ = needed_ratios([scores] * 3, [NONE] * 3)
    assert all(float((needed <= ratio).double().mean()) == pytest.approx(ratio) for ratio in (0.1, 0.37, 1.0))
    assert overlaps([scores] * 3, [NONE] * 3, 0.37).eq(1).all()


def test_a_head_competes_with_the_trunk_within_its_task():
    trunk, heads = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], [torch.tensor([2.0]), torch.tensor([9.0])]
    shared, own = needed_ratios(trunk, heads)
    assert_close(shared, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    assert_close(torch.cat(own), torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.9])
def test_the_ratio_is_what_bisection_finds(sparsity):
    generator = torch.Generator().manual_seed(1)
    trunk, heads = list(torch.rand(3, 4000, generator=generator)), list(torch.rand(3, 500, generator=generator))
    shared, own = needed_ratios(trunk, heads)
    needed = torch.cat([shared, *own])
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float((needed <= middle).double().mean()) >= 1 - sparsity else (middle, high)
    found = ratio_for(needed, 1 - sparsity)
    assert found == pytest.approx(high, abs=1e-12)
    assert float((needed <= found).double().mean()) == pytest.approx(1 - sparsity, abs=1e-3)


def test_rounding_does_not_decide():
    assert places(torch.tensor([0.0, 1.0, 1e-17, 1.0 + 1e-16])).tolist() == [3, 1, 4, 2]
    assert places(torch.zeros(3)).tolist() == [1, 2, 3]


def test_densities_of_layers_follow_their_shapes():
    shapes = [(64, 64, 3, 3), (64, 64, 1, 1), (2, 8)]
    found = layer_densities(shapes, 0.1)
    sizes = [math.prod(s) for s in shapes]
    assert sum(d * n for d, n in zip(found, sizes, strict=True)) == pytest.approx(0.1 * sum(sizes))
    assert found[2] == 1.0 and found[1] / found[0] == pytest.approx((130 / 4096 / (134 / 36864)) ** 0.9)
    assert layer_densities(shapes, 1.0) == pytest.approx([1, 1, 1])


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_network_is_the_dense_one_with_masks(kind):
    net, plain = network("disparse", kind).eval(), dense(kind).eval()
    check_ownership(network("disparse", kind))
    assert all(torch.equal(net.get_parameter(name), p) for name, p in plain.named_parameters())
    layers = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(net.prunable) == len([m for m in layers if m.weight.requires_grad]) and net.density() == 1
    assert net.trunk() + [n for task in TASKS for n in net.of(task)] == net.prunable
    with torch.no_grad():
        assert torch.equal(
            net(images(), ["depth"]).predictions["depth"], plain(images(), ["depth"]).predictions["depth"]
        )


@pytest.mark.parametrize(("mode", "optimiser", "sparsity"), [
    ("static", "adamw", 0.9), ("static", "sgd", 0.5), ("dynamic", "adamw", 0.7), ("static", "adamw", 0.0)
])  # fmt: skip
def test_pruned_weights_stay_zero_through_momentum_and_decay(mode, optimiser, sparsity, tmp_path):
    arguments = {"mode": mode, "sparsity": sparsity, "batches": 3, "interval": 2}
    spec = toy_spec("disparse", steps=6, tasks=NAMES, arguments=arguments)
    spec.optimiser.update({"name": optimiser, "weight_decay": 0.1, "momentum": 0.9})
    weights = pruned_weights(trained(spec, str(tmp_path)))
    masks = torch.cat([mask.flatten() for _, mask in weights.values()])
    assert float(masks.double().mean()) == pytest.approx(1 - sparsity, abs=2e-3)
    for weight, mask in weights.values():
        assert not weight[~mask].any()
        assert mode == "dynamic" or weight[mask].ne(0).double().mean() > 0.99 or not mask.any()


@pytest.mark.parametrize("mode", ["static", "pretrained"])
def test_scores_by_hand(mode, tmp_path, monkeypatch):
    """One batch: |w ∂L/∂w| at weights drawn for the scores, or |∂L/∂w| w² at the network's own, by each loss."""
    seen = {}
    needed = pruning.needed_ratios

    def spy(trunk, heads):
        seen["trunk"], seen["heads"] = trunk, heads
        return needed(trunk, heads)

    monkeypatch.setattr(pruning, "needed_ratios", spy)
    drawn = []
    draw = torch.nn.init.xavier_normal_
    monkeypatch.setattr(torch.nn.init, "xavier_normal_", lambda w: drawn.append(draw(w)) or w)
    methods = []
    own = DiSparse._scores

    def scores(self):
        methods.append(self)
        if mode == "pretrained":
            drawn[:] = [self.network.get_parameter(name).detach().clone() for name in self.network.prunable]
        return own(self)

    monkeypatch.setattr(DiSparse, "_scores", scores)
    spec = toy_spec("disparse", steps=2, tasks=NAMES, ragged=False, arguments={"batches": 1, "mode": mode})
    trained(spec, str(tmp_path))
    net = network_like(methods[0], drawn)
    data = methods[0].trainer.datamodule
    samples = data.samples("train")
    batch = [samples[i] for i in range(8)]
    image = torch.stack([s["image"] for s in batch])
    for i, task in enumerate(NAMES):
        target = torch.stack([s["targets"][task] for s in batch])
        kind = methods[0].tasks[task]
        loss = kind.loss(net(image, [task]).predictions[task], target) * kind.scale / kind.count(target)
        names = [*net.trunk(), *net.of(task)]
        parameters = [net.get_parameter(n) for n in names]
        gradients = torch.autograd.grad(loss, parameters)
        power = 1 if mode == "static" else 2
        wanted = torch.cat([(g.abs() * p.abs() ** power).flatten() for g, p in zip(gradients, parameters, strict=True)])
        assert_close(torch.cat([seen["trunk"][i], seen["heads"][i]]), wanted.detach())


def network_like(method, drawn):
    """Returns the network of a fresh method of the same seed, with other weights in its layers."""
    from mtlbench.seeding import seed_of

    torch.manual_seed(seed_of("weights", 0))
    net = method.build_network().double()
    with torch.no_grad():
        for name, value in zip(net.prunable, drawn, strict=True):
            net.get_parameter(name).copy_(value)
    return net


def test_dynamic_masks_change_and_keep_their_size(tmp_path):
    def masks(until):
        arguments = {"mode": "dynamic", "sparsity": 0.8, "interval": 2, "until": until}
        spec = toy_spec("disparse", steps=6, tasks=NAMES, arguments=arguments)
        return {name: mask for name, (_, mask) in pruned_weights(trained(spec, str(tmp_path / str(until)))).items()}

    fixed, changed = masks(0.0), masks(1.0)
    assert all(int(fixed[name].sum()) == int(changed[name].sum()) for name in fixed)
    moved = sum(int((fixed[name] & ~changed[name]).sum()) for name in fixed)
    assert 0.1 < moved / sum(int(mask.sum()) for mask in fixed.values()) < 0.7


def test_the_share_that_changes_falls_from_a_half_along_a_cosine(tmp_path, monkeypatch):
    """Of each layer's kept weights: (1 + cos(π t / e)) / 4 at step t, and none from e = 6 on."""
    found = []
    monkeypatch.setattr(DiSparse, "_grow", lambda self, name, gradients, count: found.append((name, count)))
    arguments = {"mode": "dynamic", "sparsity": 0.5, "interval": 2, "until": 0.75}
    spec = toy_spec("disparse", steps=8, tasks=NAMES, arguments=arguments)
    weights = pruned_weights(trained(spec, str(tmp_path)))
    name, (_, mask) = max(weights.items(), key=lambda item: item[1][1].numel())
    first, second = (count for layer, count in found if layer == name)
    left = int(mask.sum())  # Without growth, what was pruned is missing.
    kept = left + first + second
    assert first == int(kept * (1 + math.cos(math.pi / 3)) / 4)
    assert second == int((kept - first) * (1 + math.cos(2 * math.pi / 3)) / 4)


def unequal_masks():
    """Returns what a rank says of masks that are its own."""
    from mtlbench import distributed

    method = made("disparse")
    method._check_equal()
    method.network.mask(method.network.prunable[0]).view(-1)[distributed.rank()] = False
    try:
        method._check_equal()
    except MethodError as error:
        return str(error)
    return ""


def test_masks_that_differ_between_ranks_are_refused(pool):
    assert all("must be equal on all ranks" in said for said in pool.call(unequal_masks))


def test_what_grows_is_what_some_task_ranks_highest():
    method = made("disparse", mode="dynamic")
    name = method.network.prunable[0]
    mask = method.network.mask(name).view(-1)
    mask.fill_(False)
    mask[0] = True
    one, two = torch.zeros(2, len(mask))
    one[[0, 5, 7]] = torch.tensor([9.0, 4.0, -3.0])  # 0 is there already
    two[[6, 5]] = torch.tensor([-0.1, 0.05])
    method._grow(name, [one, two], 2)
    assert mask.nonzero()[:, 0].tolist() == [0, 5, 6]


def test_masks_are_those_of_a_run_that_was_not_interrupted_and_of_two_ranks(pool):
    findings = check_method("disparse", pool, {"mode": "dynamic", "interval": 3, "sparsity": 0.5})
    assert not [f"{finding.check}: {finding.detail}" for finding in findings if not finding.ok]


def test_pretrained_prunes_what_the_dense_run_has_learned(tmp_path):
    spec = toy_spec("disparse", steps=3, tasks=NAMES).with_method(
        registry.record("disparse", mode="pretrained", sparsity=0.5)
    )
    plan = DiSparse.plan(spec)
    (before,) = next(plan)
    assert before == replace(spec, method=registry.record("uniform"), label="uniform")
    (run,) = plan.send([{}])
    for each in (before, run):
        folder = RunFolder(tmp_path, each.run_id)
        folder.path.mkdir(parents=True)
        assert folder.claim(each) and train(replace(each, trainer={**each.trainer, "steps": 3}), folder)
    result = RunFolder(tmp_path, run.run_id).result()
    summary = RunFolder(tmp_path, run.run_id).outcome()["summary"]
    assert result["steps"] == 3 and summary["density"] == pytest.approx(0.5, abs=1e-3)
    assert 0 < summary["overlap"][0][1] < 1 and 0 < summary["keep_ratio"] < 0.5
    assert summary["stored_bytes"] < 0.6 * summary["dense_bytes"]
    assert 0.2 < summary["flops"]["sparse"] / summary["flops"]["dense"] < 0.8


def test_training_flops_count_the_passes_for_the_scores(tmp_path):
    def flops(**arguments):
        spec = toy_spec("disparse", steps=3, tasks=NAMES, ragged=False, arguments=arguments)
        trained(spec, str(tmp_path))
        return RunFolder(tmp_path, spec.run_id).result()["cost"]["training_flops"]

    none, one, two, three = flops(mode="dynamic", interval=9), *(flops(batches=n) for n in (1, 2, 3))
    assert three - two == two - one > 0  # Of a batch, beside what the choice takes once.
    assert one - none == pytest.approx(two - one, rel=0.05)


def test_the_size_and_the_products_by_hand():
    net = network("disparse", "cnn", {"depth": TASKS["depth"]})
    last = net.prunable[-1]
    places_of = 2 * 4 * 6  # the head's grid of the 16 x 24 image, two FLOPs per multiply-add
    whole = net.stored_bytes()
    dense_flops, sparse = net.products(images(1), ["depth"])
    assert dense_flops == sparse
    net.mask(last).fill_(False)
    assert whole - net.stored_bytes() == 4 * 12
    assert net.products(images(1), ["depth"]) == (dense_flops, dense_flops - places_of * 12)


@pytest.mark.parametrize(("options", "message"), [
    ({"sparsity": -0.1}, "at least 0 and below 1. Found -0.1"), ({"sparsity": 1.0}, "below 1"),
    ({"sparsity": 1.5}, "below 1"), ({"sparsity": math.nan}, "below 1"), ({"mode": "random"}, "dynamic, pretrained"),
    ({"batches": 0}, "batches and interval"), ({"interval": 0}, "batches and interval"), ({"until": 1.5}, "until"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(MethodError, match=message) as caught:
        made("disparse", **options)
    assert "\n" not in str(caught.value)


def test_a_task_is_extracted_without_its_zeros(tmp_path):
    """From a run on disk to files that hold the kept weights alone and predict what the run's network predicts."""
    arguments = {"sparsity": 0.9, "batches": 2}
    spec = toy_spec("disparse", steps=2, tasks=NAMES, arguments=arguments, precision="32-true")
    folder = RunFolder(tmp_path / "check", spec.run_id)
    assert folder.claim(spec) and train(spec, folder)
    run = folder.path
    found = mtlbench(tmp_path, "extract", str(run), "--task", "kind", "--out", "alone")
    assert found.code == 0 and "load_extracted('alone')" in found.text and "kind: " in found.text, found.text
    method, extracted = load_run(run).method, load_extracted(tmp_path / "alone")
    with torch.no_grad():
        assert torch.equal(extracted(images()), method(images(), ["kind"])["kind"])
    size = (tmp_path / "alone/model.safetensors").stat().st_size
    assert size < 0.3 * 4 * sum(p.numel() for p in extracted.parameters())
    for words, message in ((["--threshold", "0.1"], "for networks with experts"), (["--task", "knd"], "Did you mean")):
        refused = mtlbench(tmp_path, "extract", str(run), *words)
        assert refused.code == 2 and message in refused.text, refused.text
