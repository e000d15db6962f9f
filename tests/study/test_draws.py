"""What is drawn, as literal numbers: the order of samples, where it changes, and which labels are cut.

Another order is another experiment: it would change every stored result without changing any identity.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtlbench.data import StepBatches
from mtlbench.data.label_rules import ChangedLabels
from mtlbench.seeding import seed_of
from mtlbench.study.scenarios import Scenario, Scope
from mtlbench.study.scenarios.low_resource import LowResource
from mtlbench.study.scenarios.unrelated_task import UnrelatedTask
from mtlbench.study.scenarios.unseen_task import UnseenTask

EPOCHS = ([8, 4, 6, 7, 2, 9, 3, 5], [0, 9, 7, 4, 5, 6, 1, 2], [6, 7, 8, 3, 0, 1, 5, 9])
"""The first two batches of four of each epoch: ten samples, seed 5."""
LEFT, RIGHT, OTHER_SEED = [0, 8, 7, 5, 1, 9, 4, 3, 2, 6], [8, 4, 5, 7, 6, 9, 3, 1, 0, 2], [0, 7, 9, 6, 1, 8, 3, 4, 2, 5]
"""Order in which ten images keep their labels of two tasks for seed 0, and of the first for seed 1."""


def test_an_order_lasts_until_its_last_full_batch() -> None:
    expected = [[(epoch, i) for i in EPOCHS[epoch][at : at + 4]] for epoch in range(3) for at in (0, 4)]
    assert list(StepBatches(10, 4, 6, seed=5)) == expected
    assert list(StepBatches(10, 4, 6, seed=5, start=3)) == expected[3:]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_take_turns_within_a_micro_batch(rank: int) -> None:
    found = [[i for _, i in part] for part in StepBatches(10, 4, 2, seed=5, rank=rank, world=2)]
    assert found == [[[8, 6], [2, 3]], [[4, 7], [9, 5]]][rank]
    micro = [[i for _, i in part] for part in StepBatches(10, 4, 1, seed=5, rank=rank, world=2, micro=2)]
    assert micro == [[[8], [6]], [[4], [7]]][rank]


class Ten:
    """Ten images; the label of task t in image i is (i, t); one of them may have none of task ``left``."""

    def __init__(self, absent: int | None = None):
        self.absent = absent

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        names = ["right"] if index == self.absent else ["left", "right"]
        return {"id": str(index), "image": torch.zeros(3, 2, 2), "targets": {name: (index, name) for name in names}}


def kept(rules: dict, task: str, seed: int = 0, absent: int | None = None) -> list[int]:
    changed = ChangedLabels(Ten(absent), rules, ["left", "right", "whole"], seed, 2)
    return [i for i in range(10) if task in changed[i]["targets"]]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
def test_shares_keep_the_first_images_of_an_order_of_the_task(share: float) -> None:
    rules, count = {"left": {"share": share}, "right": {"share": share}}, round(10 * share)
    assert kept(rules, "left") == sorted(LEFT[:count])
    assert kept(rules, "right") == sorted(RIGHT[:count])
    assert kept(rules, "left", seed=1) == sorted(OTHER_SEED[:count])
    assert kept({"left": {"share": share}}, "right") == list(range(10))


def test_counts_keep_the_first_images_that_have_a_label() -> None:
    assert kept({"left": {"count": 3}}, "left") == sorted(LEFT[:3]) == [0, 7, 8]
    assert kept({"left": {"count": 3}}, "left", absent=7) == [0, 5, 8]
    assert kept({"left": {"count": 10}}, "left") == list(range(10))


def test_shuffled_labels_come_from_the_image_before_in_the_order() -> None:
    changed = ChangedLabels(Ten(), {"left": {"shuffled": True}}, ["left", "right"], 0, 2)
    assert {i: changed[i]["targets"]["left"][0] for i in range(10)} == dict(
        zip(LEFT, LEFT[-1:] + LEFT[:-1], strict=True)
    )
    assert all(changed[i]["targets"]["right"] == (i, "right") for i in range(10))


def test_a_run_on_the_cut_task_alone_repeats_its_images_until_they_fill_a_batch() -> None:
    def images(task: str, batch: int) -> list[int]:
        changed = ChangedLabels(Ten(), {"left": {"share": 0.3}}, [task], 0, batch)
        return [int(changed[i]["id"]) for i in range(len(changed))]

    assert images("left", 3) == [0, 7, 8] and images("left", 4) == [0, 7, 8] * 2 == images("left", 6)
    assert images("left", 7) == [0, 7, 8] * 3 and images("right", 7) == list(range(10))


def test_seeds_are_what_they_were() -> None:
    assert seed_of("order", 5, 0) == 6981489714234316522 and seed_of("labels", 0, "left") == 9044111950443293291


# ---- what a scenario does where nothing is said ----------------------------------------------------------------------


def test_scenarios_by_default() -> None:
    low, unseen, unrelated = LowResource("left"), UnseenTask("left", ["right"]), UnrelatedTask("left")
    assert tuple(low.fractions) == (0.01, 0.05, 0.1, 0.25) and unrelated.unrelated == ""
    assert (tuple(unseen.examples), unseen.steps, unseen.lr, unseen.freeze_routers) == ((8, 32, 128), 100, 1e-3, False)
    assert (unseen.arguments, tuple(unseen.scratch), unseen.images_needed(), unseen.folds) == (None, (), 128, 2)
    assert low.images_needed() == unrelated.images_needed() == 0


def faults(scenario: Scenario, tasks: int, *splits: str) -> list[str]:
    return [key for key, _ in scenario.faults(Scope(["left", "right", "ink"][:tasks], ["uniform"], splits))]


def test_how_many_tasks_and_splits_a_scenario_needs() -> None:
    assert faults(UnrelatedTask("left"), 2, "train", "val") == [] and faults(UnrelatedTask("left"), 1, "val") == [
        "task"
    ]
    one, two = UnseenTask("left", ["right"]), UnseenTask("left", ["right", "ink"])
    assert faults(one, 2, "train", "val") == [] == faults(two, 3, "train", "val", "test")
    assert faults(two, 3, "train", "val") == [] and faults(two, 2, "train", "val", "test") == ["related"]
    other = UnrelatedTask("left", "right")
    assert (
        faults(other, 3, "val") == []
        and faults(other, 2, "val") == ["task"]
        and faults(other, 1, "val") == ["unrelated"]
    )
    assert faults(replace(one, scratch=["uniform"]), 2, "val") == []
    assert faults(replace(one, scratch=["else"], steps=0, lr=0.0), 2, "val") == ["steps", "lr", "scratch"]
    assert faults(LowResource("ink", [1.0, 0.5]), 2, "val") == ["task"]
    assert faults(LowResource("left", [True, 0.5]), 2, "val") == ["fractions"]
