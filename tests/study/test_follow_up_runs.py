"""Runs that start from another run: which weights they begin with, and how one of several is chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.data import Samples
from mtlbench.data_modules.digits import Digits
from mtlbench.errors import MethodError, StoreError
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.training import run, warm_start
from mtlbench.training.build import build_with_network
from mtlbench.training.load import load_run
from tests.support.command_line import write_suite
from tests.support.scenario_suite import SUITE, UNSEEN, Three, data_of, plan_of, resolved, scored

# ---- starting from another run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunSpec, RunSpec, list[RunSpec]]]:
    """A folder with a trained run on `right` and `ink`, its specification, one on 4 examples of `left`, and its parts.

    The parts are the runs that hold out some of the examples.
    """
    root = tmp_path_factory.mktemp("first")
    write_suite(root, "mine", SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        plan = plan_of(
            resolved(root, "methods=[{name: task_moe, experts: 4, gate: token_task}]", UNSEEN).cases[0].begin
        )
        (spec,) = next(plan)
        folder = RunFolder(root, spec.run_id)
        assert folder.claim(spec) and run.train(spec, folder)
        result = folder.result() or {}
        assert result["task_gates"] is True and set(result["validation"]) == {"right", "ink"}
        parts = plan.send([result])
        (second,) = plan.send(scored(0.5, 0.5, 0.5, 0.5))
        yield root, spec, second, parts


@pytest.fixture
def first(whole: tuple[Path, RunSpec, RunSpec, list[RunSpec]]) -> tuple[Path, RunSpec, RunSpec]:
    """The folder, the first run and the second."""
    return whole[:3]


def _method(spec: RunSpec) -> Any:
    return build_with_network(spec)[0]


def test_it_begins_with_exactly_the_weights_of_the_other_run(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, spec, second = first
    trained, fresh, method = load_run(root / spec.run_id, allow=["tests"]).method, _method(second), _method(second)
    warm_start.begin(method, second, root, _method)
    theirs, untouched, ours = (dict(m.network.named_parameters()) for m in (trained, fresh, method))
    shared = {name for name in ours if "left" not in name}
    heads = {name for name in ours if name.startswith("heads.left")}
    gates = ours.keys() - shared - heads
    assert heads and gates and shared <= theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    assert all(torch.equal(ours[name], untouched[name]) for name in heads), "a fresh head"
    assert all(torch.equal(ours[name], theirs[name.replace("left", "right")]) for name in gates)
    assert not any(torch.equal(ours[name], theirs[name.replace("left", "ink")]) for name in gates)


def test_inherited_gates_route_as_the_related_task(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, spec, second = first
    trained, method = load_run(root / spec.run_id, allow=["tests"]).method, _method(second).eval()
    warm_start.begin(method, second, root, _method)
    image = torch.randint(0, 256, (5, 3, 24, 32), dtype=torch.uint8)
    new, related, other = (
        m.network(image, [task]).statistics["experts"]
        for m, task in ((method, "left"), (trained, "right"), (trained, "ink"))
    )
    assert new.keys() == related.keys() and new
    assert all(torch.equal(new[name].probability, related[name].probability) for name in new)
    assert not any(torch.equal(new[name].probability, other[name].probability) for name in new)


@pytest.mark.parametrize("freeze", [False, True])
def test_it_trains_from_there(first: tuple[Path, RunSpec, RunSpec], freeze: bool, tmp_path: Path) -> None:
    root, spec, second = first
    second = replace(second, start={**(second.start or {}), "freeze": freeze})
    folder = RunFolder(root, second.run_id)
    assert folder.claim(second) and run.train(second, folder)
    result = folder.result() or {}
    assert set(result["validation"]) == set(result["scores"]) == {"left"}
    begun, ended = _method(second), load_run(folder.path, allow=["tests"]).method
    warm_start.begin(begun, second, root, _method)
    moved = {
        n for n, p in begun.network.named_parameters() if not torch.equal(p, dict(ended.network.named_parameters())[n])
    }
    routers = {n for n in dict(begun.network.named_parameters()) if ".router." in n}
    assert moved - routers and routers and (moved & routers == set()) == freeze
    (row,) = [
        json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines() if '"loss/left"' in line
    ][:1]
    assert "loss/right" not in row


def test_what_does_not_fit_is_refused(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, _, second = first
    begin = partial(warm_start.begin, build=_method)
    for changes, message in (({"run": "absent"}, "absent: todo"), ({"hash": "0"}, "another run of that name")):
        other = replace(second, start={**(second.start or {}), **changes})
        with pytest.raises(StoreError, match=message):
            begin(_method(other), other, root)
    wide = replace(second, model={**second.model, "decoder_channels": 16})
    with pytest.raises(MethodError, match=r"the same network in both runs.*neck"):
        begin(_method(wide), wide, root)


def test_another_draw_changes_the_fresh_head_alone(first: tuple[Path, RunSpec, RunSpec]) -> None:
    root, _, second = first
    found = []
    for draw in (0, 1, 1, 2):
        spec = replace(second, start={**(second.start or {}), "draw": draw})
        method = _method(spec)
        warm_start.begin(method, spec, root, _method)
        found.append(dict(method.network.named_parameters()))
    for name, value in found[0].items():
        drawn = [not torch.equal(value, other[name]) for other in found[1:]]
        assert torch.equal(found[1][name], found[2][name])
        # What is drawn as a constant, a bias or a scale, is no other one in another draw.
        assert any(drawn) == (name.startswith("heads.left") and value.std() > 0), name


# ---- the choice among follow-up runs ---------------------------------------------------------------------------------


class Changed:
    """Samples of which some have another label of `left`."""

    def __init__(self, samples: Samples, changed: set[str]):
        self.samples, self.changed = samples, changed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        change = {"left": (sample["targets"]["left"] + 1) % 10} if sample["id"] in self.changed else {}
        return {**sample, "targets": {**sample["targets"], **change}}


def _held_out(spec: RunSpec) -> tuple[set[str], set[str]]:
    """Returns the ids of the images that a part trains on, and of those that it holds out."""
    data = data_of(spec)
    kept = {s["id"] for s in (data.training_samples()[i] for i in range(len(data.training_samples())))}
    held = data.scored_samples(data.scored_split())
    return kept, {held[i]["id"] for i in range(len(held))}


def _trained_on(spec: RunSpec, root: Path, patch: pytest.MonkeyPatch, changed: set[str]) -> dict[str, Any]:
    """Returns the result of a part where validation and test must not be read, and some labels are others."""

    def samples(self: Any, split: str) -> Any:
        assert split == "train", f"the choice reads the labels of {split}"
        return Changed(Digits.samples(self, split), changed)

    folder = RunFolder(root, spec.run_id)
    with patch.context() as inner:
        inner.setattr(Three, "samples", samples)
        assert folder.claim(spec) and run.train(spec, folder)
    result = folder.result() or {}
    shutil.rmtree(folder.path)
    return result


def test_a_choice_never_reads_the_labels_of_validation_or_test(
    whole: tuple[Path, RunSpec, RunSpec, list[RunSpec]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first, _, (part, *_) = whole
    shutil.copytree(root / first.run_id, tmp_path / first.run_id)
    kept, held = _held_out(part)
    assert len(kept) == len(held) == 2 and not kept & held
    result = _trained_on(part, tmp_path, monkeypatch, set())
    assert (result["split"], result["validation"], result["images"]) == ("held_out", None, {"train": 40, "held_out": 2})
    # Held-out labels decide the score and nothing else; labels that are trained on decide the weights.
    other = _trained_on(part, tmp_path, monkeypatch, held)
    assert other["weights_sha256"] == result["weights_sha256"]
    trained = _trained_on(part, tmp_path, monkeypatch, kept)
    assert trained["weights_sha256"] != result["weights_sha256"]
    assert {each["scores"]["left"]["accuracy@1"] for each in (result, other)} <= {0.0, 0.5, 1.0}


def test_a_part_is_scored_on_its_held_out_examples(
    whole: tuple[Path, RunSpec, RunSpec, list[RunSpec]], tmp_path: Path
) -> None:
    root, first, _, (_, part, *_) = whole
    shutil.copytree(root / first.run_id, tmp_path / first.run_id)
    folder = RunFolder(tmp_path, part.run_id)
    assert folder.claim(part) and run.train(part, folder)
    method, data = load_run(folder.path, allow=["tests"]).method.eval(), data_of(part)
    held = _held_out(part)[1]
    plain = data.samples("train")
    right = []
    for sample in (plain[i] for i in range(len(plain))):
        if sample["id"] in held:
            predicted = method(sample["image"][None], ["left"])["left"].argmax(1)
            right.append(bool(predicted == sample["targets"]["left"]))
    expected = sum(right) / len(right)
    assert (folder.result() or {})["scores"] == {"left": {"accuracy@1": pytest.approx(expected)}}
