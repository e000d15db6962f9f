"""Cut and shuffled labels: which images keep theirs, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.data import Collate, Samples
from mtlbench.data.label_rules import ChangedLabels, HeldOut
from mtlbench.data_modules.digits import Digits
from mtlbench.errors import DataError


def samples_of(seed: int = 0, rule: dict[str, Any] | None = None, **more: Any) -> ChangedLabels:
    """Returns 200 training pairs, every tenth label of `left` missing, under a rule on the labels of `left`."""
    tasks = more.pop("tasks", ["left", "right"])
    whole = Digits(tasks={name: Digits.TASKS[name] for name in tasks}, train=200, drop=0.1).samples("train")
    return ChangedLabels(whole, {"left": rule or {}}, tasks, seed, more.pop("batch_size", 8))


def labelled(samples: Samples, task: str = "left") -> set[str]:
    return {s["id"] for s in (samples[i] for i in range(len(samples))) if task in s["targets"]}


def test_shares_are_nested_of_the_right_size_and_a_matter_of_the_seed_alone() -> None:
    found = [labelled(samples_of(rule={"share": share})) for share in (0.01, 0.1, 0.5, 1.0)]
    assert all(a < b for a, b in zip(found, found[1:], strict=False))
    images = [len(samples_of(rule={"share": share}, tasks=["left"], batch_size=1)) for share in (0.01, 0.1, 0.5, 1.0)]
    assert images == [2, 20, 100, 200], "every image of the share, its label missing or not"
    assert labelled(samples_of(1, {"share": 0.1})) != found[1]
    assert labelled(samples_of(rule={"share": 0.1}, tasks=["left", "ink", "sum"])) == found[1]


def test_only_the_labels_of_the_task_are_cut() -> None:
    whole, cut = samples_of(rule={"share": 1.0}), samples_of(rule={"share": 0.1})
    assert len(cut) == len(whole) == 200
    for index in range(200):
        a, b = whole[index], cut[index]
        assert a["id"] == b["id"] and torch.equal(a["image"], b["image"])
        assert ("right" in a["targets"]) == ("right" in b["targets"])
        assert all(torch.equal(value, a["targets"][name]) for name, value in b["targets"].items())


def test_counts_are_of_images_with_a_label() -> None:
    few, more = (labelled(samples_of(rule={"count": count}, tasks=["left"])) for count in (5, 20))
    assert len(few) == 5 and len(more) == 20 and few < more
    repeated = samples_of(rule={"count": 5}, tasks=["left"], batch_size=8)
    ids = [repeated[index]["id"] for index in range(len(repeated))]
    assert sorted(ids) == sorted([*few] * 2), "as often as a batch of 8 needs, each equally often"
    with pytest.raises(DataError, match=r"left: asked for 200, found 1[78]\d in 200 training images"):
        samples_of(rule={"count": 200})


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_every_example_is_held_out_once_and_trained_on_otherwise(folds: int) -> None:
    examples = labelled(samples_of(rule={"count": 7}, tasks=["left"]))
    whole = Digits(tasks={"left": Digits.TASKS["left"]}, train=200, drop=0.1).samples("train")
    parts = []
    for fold in range(folds):
        rule = {"count": 7, "fold": [fold, folds]}
        held, kept = labelled(HeldOut(whole, {"left": rule}, 0)), labelled(samples_of(rule=rule, tasks=["left"]))
        assert held | kept == examples and not held & kept
        parts.append(held)
    assert sum(map(len, parts)) == len(set().union(*parts)) == 7
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_example_is_held_out_with_the_label_of_its_task_alone() -> None:
    whole = Digits(tasks={n: Digits.TASKS[n] for n in ("left", "right")}, train=50).samples("train")
    held = HeldOut(whole, {"left": {"count": 6, "fold": [1, 3]}, "right": {"count": 4}}, 0)
    assert [list(held[i]["targets"]) for i in range(len(held))] == [["left"], ["left"]]
    by_id = {sample["id"]: sample for sample in (whole[i] for i in range(50))}
    for sample in (held[i] for i in range(2)):
        assert torch.equal(sample["image"], by_id[sample["id"]]["image"])
        assert sample["targets"]["left"] == by_id[sample["id"]]["targets"]["left"]


def test_shuffled_labels_are_those_of_another_image() -> None:
    tasks = {name: Digits.TASKS[name] for name in ("left", "ink")}
    whole = Digits(tasks=tasks, train=60).samples("train")
    changed = ChangedLabels(whole, {"ink": {"shuffled": True}}, tasks, 0, 8)
    before, after = ([float(s[i]["targets"]["ink"]) for i in range(60)] for s in (whole, changed))
    assert sorted(before) == sorted(after), "each label once"
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 50, "two images may have as much ink"
    assert all(torch.equal(whole[i]["targets"]["left"], changed[i]["targets"]["left"]) for i in range(60))
    assert all(changed.source["ink"] != np.arange(60))


def test_the_data_module_trains_on_what_is_left_and_evaluates_on_everything() -> None:
    data = Digits(tasks={"left": Digits.TASKS["left"]}, train=50, val=20, batch_size=8)
    data.labels = {"left": {"count": 4}}
    assert data.steps_per_epoch() == 1 and len(data.training_samples()) == 8
    counts = [Collate(data.tasks)([s[i] for i in range(len(s))])["counts"] for s in (data.samples("val"),)]
    assert counts == [{"left": 20}]
    data.steps = 2
    assert [batch["counts"]["left"] for batch in data.train_dataloader()] == [8, 8]
