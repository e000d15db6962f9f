"""Checks every sample of a data module: readable, of the right form, and how many labels are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.errors import DataError
from mtlbench.tasks import Task, form_fault


@dataclass
class Findings:
    """What one split holds.

    Attributes:
        samples: Images of the split.
        faults: A line for each image that cannot be used: file, rule, fact, remedy.
        unlabelled: Task -> readable images without any label of it.
    """

    samples: int
    faults: list[str] = field(default_factory=list)
    unlabelled: Counter[str] = field(default_factory=Counter)


def verify(data: MTLDataModule, split: str, watch: Callable[[int], None] = lambda done: None) -> Findings:
    """Reads every sample of a split from its files.

    Args:
        data: A data module that misses nothing, see `MTLDataModule.missing`.
        split: Name of the split.
        watch: Called with the number of samples read so far.
    """
    samples: Samples = data.originals(split)
    findings = Findings(len(samples))
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except DataError as error:
            findings.faults.append(str(error))
        except Exception as error:  # a reader that forgets to name the file must not stop the check of the others
            findings.faults.append(
                f"{split}[{index}]: a sample must be readable. Found {type(error).__name__}: {error}"
            )
        else:
            findings.faults += faults_of(sample, data.tasks)
            findings.unlabelled.update(_unlabelled(sample, data.tasks))
        watch(index + 1)
    return findings


def faults_of(sample: Sample, tasks: Mapping[str, Task]) -> list[str]:
    """Returns what is wrong with a sample's form and values, a line each; see `mtlbench.data`."""
    image = sample["image"]
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        return [f"{sample['id']}: an image is uint8 (3, H, W). Found {image.dtype} {tuple(image.shape)}."]
    faults = []
    for name, target in sample["targets"].items():
        fault = form_fault(tasks[name], target, *image.shape[-2:]) or tasks[name].fault(target[None])
        if fault:
            faults.append(f"{sample['id']}: {name}: {fault}.")
    return faults


def _unlabelled(sample: Sample, tasks: Mapping[str, Task]) -> list[str]:
    targets = sample["targets"]
    return [name for name, task in tasks.items() if name not in targets or task.count(targets[name][None]) == 0]
