"""The floor: one run without steps, fitted on the labels that the run may see, exact on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench import distributed, registry
from mtlbench.data.label_rules import ChangedLabels
from mtlbench.data_modules.scenes import Scenes
from mtlbench.errors import MethodError
from mtlbench.methods.controls import floor
from mtlbench.methods.controls.floor import Floor
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tasks import Depth
from mtlbench.testing import ToyData, difference, toy_spec
from mtlbench.training.load import load_run
from mtlbench.training.run import train


def run_of(spec: RunSpec) -> RunSpec:
    """Returns the one run that the method's plan has for a specification."""
    (run,) = next(Floor.plan(spec))
    return run


def ended(spec: RunSpec, root: str, world: int = 1) -> dict[str, Any]:
    """Returns the result of a run in this process, one of ``world`` ranks; empty on other ranks than the first."""
    folder = RunFolder(Path(root), spec.run_id)
    if distributed.rank() == 0:
        assert folder.claim(spec)
    assert train(spec, folder, world=world)
    return folder.result() or {} if distributed.rank() == 0 else {}


def weights_of(spec: RunSpec, root: Path) -> dict[str, torch.Tensor]:
    return load_run(root / spec.run_id).method.state_dict()


def labels_of(task: str, samples: Any) -> list[Any]:
    return [
        sample["targets"][task] for sample in map(samples.__getitem__, range(len(samples))) if task in sample["targets"]
    ]


def mean_of(task: str, samples: Any) -> float:
    return float(np.mean(labels_of(task, samples), dtype=np.float64))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSpec]:
    root, spec = tmp_path_factory.mktemp("floor"), run_of(toy_spec("floor"))
    ended(spec, str(root))
    return root, spec


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_is_one_run_without_steps_for_all_seeds() -> None:
    spec = toy_spec("floor", seed=3, selection="best")
    plan = Floor.plan(spec)
    (run,) = next(plan)
    assert (run.trainer["steps"], run.trainer["evaluate_every"], run.trainer["selection"]) == (0, 0, "last")
    assert run.run_id == run_of(toy_spec("floor", seed=4, selection="best")).run_id
    with pytest.raises(StopIteration) as end:
        plan.send([{}])
    assert end.value.value == dict.fromkeys(ToyData.TASKS, run.run_id)


def test_where_labels_are_cut_every_seed_has_its_own() -> None:
    cut = [toy_spec("floor", seed=seed).with_labels({"kind": {"count": 3}}) for seed in (3, 4)]
    assert [run_of(spec).seed for spec in cut] == [3, 4]


# ---- the run --------------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_training_labels(done: tuple[Path, RunSpec]) -> None:
    root, spec = done
    run = load_run(root / spec.run_id)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    found = run.method(images)
    samples = ToyData(batch_size=8).samples("train")
    assert found["mean"].flatten().tolist() == pytest.approx([mean_of("mean", samples)] * 2)
    kinds = np.bincount(labels_of("kind", samples), minlength=3)
    assert found["kind"].softmax(1)[0].tolist() == pytest.approx((kinds / kinds.sum()).tolist(), abs=1e-4)
    far = np.stack(labels_of("far", samples))
    assert (far == 255).any(), "some pixels have no label"
    expected = np.ma.masked_equal(far, 255).astype(np.float64).mean(0)
    assert torch.equal(found["far"][0], found["far"][1])
    assert np.abs(found["far"][0].detach().numpy() - expected).max() < 1e-6
    assert found["shape"].shape == (2, 4, 16, 24)


def test_the_result_of_a_run_without_steps(done: tuple[Path, RunSpec]) -> None:
    root, spec = done
    result = RunFolder(root, spec.run_id).result() or {}
    assert result["steps"] == 0 and set(result["scores"]) == set(ToyData.TASKS)
    cost = result["cost"]
    assert cost["seconds_per_step"] is None and cost["seconds_per_step_p95"] is None and cost["flops"] == 0
    assert cost["parameters"] == 3 + 1 + (4 + 1) * 16 * 24 and cost["train_seconds"] > 0
    samples = ToyData().samples("val")
    truths = np.array(labels_of("mean", samples), np.float64)
    guess = mean_of("mean", ToyData(batch_size=8).samples("train"))
    assert result["scores"]["mean"]["rmse@1"] == pytest.approx(np.sqrt(((truths - guess) ** 2).mean()))
    assert not list((root / spec.run_id).glob("step-*"))


def test_two_ranks_equal_one_process(done: tuple[Path, RunSpec], pool: Any, tmp_path: Path) -> None:
    root, spec = done
    two = pool.call(ended, spec, str(tmp_path), world=2)[0]
    assert difference(weights_of(spec, root), weights_of(spec, tmp_path)) <= 1e-12
    for task, scores in (RunFolder(root, spec.run_id).result() or {})["scores"].items():
        assert two["scores"][task] == pytest.approx(scores)


def test_a_run_that_was_killed_starts_again(
    done: tuple[Path, RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, spec = done

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(floor, "fit", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            ended(spec, str(tmp_path))
    RunFolder(tmp_path, spec.run_id).release()
    ended(spec, str(tmp_path))
    assert difference(weights_of(spec, root), weights_of(spec, tmp_path)) == 0


def test_only_the_labels_that_are_left(tmp_path: Path) -> None:
    rules = {"mean": {"count": 3}, "far": {"share": 0.2}}
    spec = run_of(toy_spec("floor", seed=5, tasks=["mean", "far"]).with_labels(rules))
    ended(spec, str(tmp_path))
    weights = weights_of(spec, tmp_path)
    samples = ChangedLabels(ToyData(batch_size=8).samples("train"), rules, ["mean", "far"], 5, 8)
    few = labels_of("mean", samples)
    every = labels_of("mean", ToyData(batch_size=8).samples("train"))
    assert len(set(map(float, few))) == 3 < len(every)
    assert weights["network.constants.mean.value"].tolist() == pytest.approx([np.mean(few)])
    assert np.mean(few) != pytest.approx(np.mean(every))


def test_a_task_without_any_label_has_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = ToyData.samples

    class Without:
        def __init__(self, samples: Any):
            self.samples = samples

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> Any:
            sample = self.samples[index]
            return {**sample, "targets": {k: v for k, v in sample["targets"].items() if k != "far"}}

    def samples(self: ToyData, split: str) -> Any:
        found = reading(self, split)
        return Without(found) if split == "train" else found

    monkeypatch.setattr(ToyData, "samples", samples)
    spec = run_of(toy_spec("floor", tasks=["far", "mean"]))
    scores = ended(spec, str(tmp_path))["scores"]
    assert np.isnan(scores["far"]["depth_rmse@1"]) and np.isfinite(scores["mean"]["rmse@1"])


def test_a_kind_without_a_floor_is_named() -> None:
    class Mine(Depth):
        def blind(self) -> None:
            return None

    with pytest.raises(MethodError, match=r"far: Mine\.blind returns None"):
        floor.fit({"far": Mine("far"), "other": Depth("other")}, [], (2, 2))


# ---- real data ------------------------------------------------------------------------------------------------------


SCENES = {"size": 16, "train": 60, "val": 8, "test": 20}


def test_scenes_agree_with_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score but that of edges, from arrays: `test_blind.py` has the edges."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Scenes(**SCENES)  # type: ignore[arg-type]
    names = [name for name in data.tasks if name != "edges"]
    spec = toy_spec("floor")
    spec = replace(
        spec,
        tasks={name: data.tasks[name].describe() for name in names},
        data={"module": "data_modules.scenes:Scenes", "options": SCENES},
        model={**spec.model, "image_size": [16, 16]},
    )
    spec = run_of(spec)
    scores = ended(spec, str(tmp_path))["scores"]
    train, test = (
        {name: np.stack(labels_of(name, data.samples(split))) for name in names} for split in ("train", "test")
    )
    depth = np.ma.masked_equal(train["depth"].astype(np.float64), 255).mean(0)
    error = np.ma.masked_equal(test["depth"], 255) - depth
    assert scores["depth"]["depth_rmse@1"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
    mean = np.ma.masked_equal(train["normals"].astype(np.float64), 255).sum(0)
    cosine = (np.asarray(mean / np.linalg.norm(mean, axis=0)) * test["normals"]).sum(1)
    angles = np.degrees(np.arccos(np.clip(cosine[test["normals"][:, 0] != 255], -1, 1)))
    assert scores["normals"]["normals_mean@1"] == pytest.approx(angles.mean(), rel=1e-5)
    share = (train["saliency"] == 1).mean(0)
    cuts = [(overlap(share > cut, train["saliency"]), cut) for cut in np.unique(share)]
    assert scores["saliency"]["saliency_miou@1"] == pytest.approx(overlap(share > max(cuts)[1], test["saliency"]))
    for name in ("semseg", "parts"):
        task = data.tasks[name]
        counts = np.stack([(train[name] == k).sum(0) for k in range(task.channels)])
        found = weights_of(spec, tmp_path)[f"network.constants.{name}.value"].argmax(0).numpy()
        assert scores[name][task.protocols[0].id] == pytest.approx(overlap(found, test[name]))
        assert overlap(found, train[name]) >= overlap(counts.argmax(0), train[name])


def overlap(guess: Any, truths: Any) -> float:
    """Returns the mean IoU of one map for all images, over the classes that occur."""
    guess = np.broadcast_to(guess, truths.shape)
    known = truths != 255
    found = []
    for k in np.union1d(np.unique(guess), np.unique(truths[known])):
        either = ((guess == k) | (truths == k)) & known
        if either.any():
            found.append(((guess == k) & (truths == k) & known).sum() / either.sum())
    return float(np.mean(found))


def test_it_is_a_shipped_method() -> None:
    assert registry.find(registry.FLOOR) is Floor
