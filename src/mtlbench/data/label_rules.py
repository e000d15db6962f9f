"""Fewer training labels, or false ones: what a study does to the labels of a task. Validation and test stay whole.

A rule on the labels of one task is one of

- ``{"share": r}``, 0 < r <= 1: the first r of the images, in an order drawn for this task, keep their label;
- ``{"count": K}``: the first K images that have one keep it; with K = 0, the task has no training label;
- ``{"count": K, "fold": [i, F]}``: of these K, those at the places i, i + F, i + 2F … are held out instead: the run is
  scored on them, and on nothing else;
- ``{"shuffled": True}``: every image gets the label of another image, always the same one.

The order depends on the run's seed and the task alone: methods of one seed see the same labels, and those of a smaller
share are among those of a larger one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlbench.data.contract import lengths_of
from mtlbench.errors import DataError
from mtlbench.seeding import seed_of

if TYPE_CHECKING:
    from mtlbench.data import Sample, Samples

Rules = Mapping[str, Mapping[str, Any]]
"""Task -> rule."""

HELD_OUT = "held_out"
"""Name of the split of the examples that a rule with a fold leaves out."""


def holds_out(rules: Rules) -> bool:
    """Returns whether a rule leaves out some of its examples."""
    return any("fold" in rule for rule in rules.values())


class HeldOut:
    """The examples that rules with a fold leave out, each with the label of the task whose rule it is.

    Args:
        samples: All training samples, without augmentation.
        rules: Rules by task.
        seed: Seed of the run.
    """

    def __init__(self, samples: Samples, rules: Rules, seed: int):
        folds = {task: rule for task, rule in rules.items() if "fold" in rule}
        self.samples = samples
        self.parts = {task: _split(samples, task, rule, seed)[1] for task, rule in folds.items()}
        self.indices = sorted(set().union(*self.parts.values()))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Returns a sample with the labels of the tasks for which it is held out."""
        place = self.indices[index]
        sample = self.samples[place]
        targets = {task: sample["targets"][task] for task, part in self.parts.items() if place in part}
        return {**sample, "targets": targets}


class ChangedLabels:
    """Training samples under rules on labels.

    An image that no task of the run may use any more is left out: a run on one task with few labels sees these only.
    They are repeated as often as a batch needs.

    Args:
        samples: All training samples.
        rules: Rules by task.
        tasks: Tasks of the run.
        seed: Seed of the run.
        batch_size: Effective batch.

    Raises:
        DataError: If there are fewer labels than asked for.
    """

    def __init__(self, samples: Samples, rules: Rules, tasks: Collection[str], seed: int, batch_size: int):
        self.samples = samples
        self.kept = {task: _kept(samples, task, rule, seed) for task, rule in rules.items() if "shuffled" not in rule}
        self.source = {task: _cycle(len(samples), seed, task) for task, rule in rules.items() if "shuffled" in rule}
        self.indices = self._indices(set(tasks), batch_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Returns a sample with the labels that the rules leave it."""
        place = int(self.indices[index])
        sample = self.samples[place]
        targets = {
            task: t for task, t in sample["targets"].items() if task not in self.kept or place in self.kept[task]
        }
        for task, source in self.source.items():
            targets.pop(task, None)
            other = self.samples[int(source[place])]["targets"]
            targets |= {task: other[task]} if task in other else {}
        return {**sample, "targets": targets}

    @property
    def lengths(self) -> np.ndarray | None:
        """Lengths of the samples; see `mtlbench.data.contract.Samples`."""
        lengths = lengths_of(self.samples)
        return None if lengths is None else lengths[self.indices]

    def _indices(self, tasks: set[str], batch_size: int) -> np.ndarray:
        if tasks - self.kept.keys():
            return np.arange(len(self.samples))
        left = np.array(sorted(set().union(*(self.kept[task] for task in tasks))))
        return np.tile(left, -(-batch_size // len(left)))


def _kept(samples: Samples, task: str, rule: Mapping[str, Any], seed: int) -> set[int]:
    """Returns the indices of the images that keep their label."""
    if "share" in rule:
        order = _order(len(samples), seed, task).tolist()
        return set(order[: max(1, round(rule["share"] * len(order)))])
    return _split(samples, task, rule, seed)[0]


def _split(samples: Samples, task: str, rule: Mapping[str, Any], seed: int) -> tuple[set[int], set[int]]:
    """Returns the indices of the K images that keep their label, and of those of them that are held out."""
    order = _order(len(samples), seed, task).tolist()
    found: list[int] = []
    for index in order:
        if len(found) == rule["count"]:
            break
        if task in samples[index]["targets"]:
            found.append(index)
    if len(found) < rule["count"]:
        raise DataError(
            f"There must be as many labels as a study asks for. {task}: asked for {rule['count']}, found {len(found)} "
            f"in {len(order)} training images. Ask for fewer."
        )
    fold, folds = rule.get("fold", (0, 0))
    held = set(found[fold::folds]) if folds else set()
    return set(found) - held, held


def _cycle(size: int, seed: int, task: str) -> np.ndarray:
    """Returns for every image the one whose label it gets: the next in the order, so never itself."""
    order = _order(size, seed, task)
    source = np.empty(size, dtype=np.int64)
    source[order] = np.roll(order, 1)
    return source


def _order(size: int, seed: int, task: str) -> np.ndarray:
    return np.random.default_rng(seed_of("labels", seed, task)).permutation(size)
