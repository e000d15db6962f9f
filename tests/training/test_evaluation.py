"""Evaluation and the choice of the best step, against sums that are made here over the samples of a split."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mtlbench.data import Collate
from mtlbench.metrics import MeanLoss
from mtlbench.runs.store import RunFolder
from mtlbench.tasks import Regression, SemanticSegmentation
from mtlbench.testing import ToyData, difference, toy_spec, trained
from mtlbench.training import callbacks, checkpoint
from mtlbench.training.build import build_with_network
from mtlbench.training.evaluation import evaluate, evaluating, examples, share_buffers

TINY = "tests.support.step_parts:Tiny"
SCALES = {"kind": 1.0, "shape": 1.0, "far": 2.0, "mean": 1.0}


class Trainer:
    """What evaluation asks of a trainer."""

    def __init__(self):
        self.precision_plugin = SimpleNamespace(val_step_context=lambda: torch.autocast("cpu", enabled=False))
        self.strategy = SimpleNamespace(batch_to_device=lambda batch: batch)
        self.world_size, self.global_rank, self.global_step = 1, 0, 0


def prepared(**arguments):
    """Returns a method that can evaluate, and its data."""
    method, data = build_with_network(toy_spec(TINY, arguments=arguments))
    method._trainer = Trainer()
    return method, data


def test_scores_and_losses_are_of_every_sample_once():
    method, data = prepared()
    data.batch_size = 3  # Seven samples in three batches of unequal size.
    samples = data.samples("val")
    batch = Collate(ToyData.TASKS)([samples[i] for i in range(len(samples))])
    method.eval()
    with torch.no_grad():
        predictions = method.network(batch["image"], list(ToyData.TASKS)).predictions
    expected = sum(
        SCALES[name] * float(task.loss(predictions[name].float(), batch["targets"][name])) / batch["counts"][name]
        for name, task in ToyData.TASKS.items()
    )
    scores, loss = evaluate(method, data.eval_dataloader("val"), with_loss=True)
    assert loss == pytest.approx(expected, rel=1e-5)
    right = (predictions["kind"].argmax(1) == batch["targets"]["kind"]).double().mean()
    assert scores["kind"] == pytest.approx({"accuracy@1": float(right)})
    again, nothing = evaluate(method, data.eval_dataloader("val"), final=True)
    assert set(again) == set(scores) and nothing != nothing
    assert again["kind"] == scores["kind"], "metrics are reset in between"


def test_evaluating_leaves_every_module_as_it_was():
    method, _ = prepared(dropout=0.5)
    method.train()
    method.network.encoder[0].eval()
    before = {name: module.training for name, module in method.named_modules()}
    assert set(before.values()) == {True, False}
    with pytest.raises(RuntimeError), evaluating(method):
        assert not any(module.training for module in method.modules()) and not torch.is_grad_enabled()
        raise RuntimeError
    assert {name: module.training for name, module in method.named_modules()} == before and torch.is_grad_enabled()


def shared(rank_value, mode=True):
    network = nn.BatchNorm1d(2).train(mode)
    rank = torch.distributed.get_rank()
    network.running_mean.fill_(rank_value[rank])
    network.num_batches_tracked.fill_(rank + 1)
    share_buffers(network)
    return network.running_mean.tolist(), int(network.num_batches_tracked)


def test_buffers_are_averaged_over_ranks_and_counters_are_not(pool):
    assert pool.call(shared, [1.0, 4.0]) == [([2.5, 2.5], 1), ([2.5, 2.5], 2)]


def test_buffers_of_modules_that_rest_are_left_alone(pool):
    assert pool.call(shared, [1.0, 4.0], mode=False) == [([1.0, 1.0], 1), ([4.0, 4.0], 2)]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_examples_are_the_first_images_with_truth_and_prediction(count):
    method, data = prepared()
    data.batch_size = 3
    samples, found = data.samples("val"), examples(method, data.eval_dataloader("val"), count)
    names = list(ToyData.TASKS)
    kinds = {"image", *(f"{what}/{name}" for name in names for what in ("target", "prediction"))}
    assert set(found) == kinds | {f"shown/{what}/{name}" for name in names for what in ("target", "prediction")}
    assert np.array_equal(found["image"], np.stack([samples[i]["image"] for i in range(count)]))
    assert all(len(value) == count for value in found.values())
    assert found["target/kind"].tolist() == [int(samples[i]["targets"]["kind"]) for i in range(count)]
    with torch.no_grad():
        answers = method.network(torch.from_numpy(found["image"]), names).predictions
    assert np.array_equal(found["prediction/shape"], answers["shape"].argmax(1).numpy())
    assert found["shown/target/shape"].shape == (count, 16, 24, 3)


def test_kinds_that_draw_on_the_image_get_it():
    class Framed(SemanticSegmentation):
        def draw_on(self, image, value, truth=None):
            assert truth is not None
            return np.concatenate([image, super().draw(value, truth)], 1)

    method, data = prepared()
    method.tasks["shape"] = Framed("shape", classes=4)
    found = examples(method, data.eval_dataloader("val"), 2)
    for what in ("target", "prediction"):
        shown = found[f"shown/{what}/shape"]
        assert shown.shape == (2, 16, 48, 3)
        assert np.array_equal(shown[:, :, :24], found["image"].transpose(0, 2, 3, 1))


class Watched(Regression):
    """Has a score of its own for the time of training."""

    def monitor(self):
        return MeanLoss(self, protocol="watched@1")


class WatchedData(ToyData):
    """Toy data with that task, and a third split."""

    TASKS = {"mean": Watched("mean")}
    SPLITS = ("train", "val", "test")


def test_training_is_monitored_and_its_end_is_measured(tmp_path):
    spec = toy_spec(TINY, tasks=["mean"], steps=3, evaluate_every=2)
    spec = replace(spec, data={"module": "tests.training.test_evaluation:WatchedData", "options": {}})
    trained(spec, str(tmp_path))
    folder = RunFolder(tmp_path, spec.run_id).path
    result = json.loads((folder / "result.json").read_text())
    measured = [p.id for p in Regression("mean").metric().protocols]
    assert result["split"] == "test" and list(result["scores"]["mean"]) == measured == list(
        result["validation"]["mean"]
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [(row["step"], key) for row in rows for key in row if key.startswith(("val/", "test/"))]
    assert scored == [(2, "val/mean/watched@1"), *((3, f"test/mean/{key}") for key in measured)]


# ---- the best step ---------------------------------------------------------------------------------------------------

LOSSES = [5.0, 2.0, 3.0, 2.0]
"""Validation losses of steps 2, 4, 6 and 8: the lowest comes twice, and the first of them counts."""


@pytest.mark.parametrize("selection", ["best", "last"])
def test_the_step_of_lowest_validation_loss_is_scored_also_after_a_stop(selection, tmp_path, monkeypatch):
    states, asked = {}, []

    def evaluation(method, *_, with_loss=False):
        at = method.trainer.global_step
        states[at] = {key: value.clone() for key, value in method.state_dict().items() if key.startswith("network.")}
        asked.append(with_loss)
        return {}, LOSSES[at // 2 - 1] if with_loss else float("nan")

    monkeypatch.setattr(callbacks, "evaluate", evaluation)
    spec = toy_spec(
        TINY, balancer="pcgrad", steps=9, selection=selection, evaluate_every=2, local={"checkpoint_every": 5}
    )
    assert trained(spec, str(tmp_path), stop_at=5) is None
    final = trained(spec, str(tmp_path))
    folder = RunFolder(tmp_path, spec.run_id).path
    assert sorted(states) == [2, 4, 6, 8] and set(asked) == {selection == "best"}
    network = {key: value for key, value in final.items() if key.startswith("network.")}
    assert (folder / "best.ckpt").exists() == (selection == "best")
    assert (difference(network, states[4]) == 0) == (selection == "best")
    assert difference(network, states[8]) > 0 and json.loads((folder / "result.json").read_text())["steps"] == 9
    if selection == "best":
        assert checkpoint.load(folder / "best.ckpt")["step"] == 4
