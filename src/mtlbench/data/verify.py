"""Check every sample of a data module: readable, of the right form, labels plausible over the whole split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.errors import DataError
from mtlbench.tasks import IGNORE, BinaryMap, Edges, SemanticSegmentation, Task, form_fault
from mtlbench.tasks.inputs import extent, input_fault, inputs_of


@dataclass
class Findings:
    """What one split holds.

    Attributes:
        samples: Images of the split.
        faults: A line for each image that cannot be used: file, rule, fact, remedy.
        unlabelled: Task -> readable images without any label of it.
        doubts: A line for each task whose values are allowed but, over the whole split, look like another encoding, and
            those of `MTLDataModule.doubts`.
    """

    samples: int
    faults: list[str] = field(default_factory=list)
    unlabelled: Counter[str] = field(default_factory=Counter)
    doubts: list[str] = field(default_factory=list)


def verify(data: MTLDataModule, split: str, watch: Callable[[int], None] = lambda done: None) -> Findings:
    """Reads every sample of a split from its files.

    Args:
        data: A data module that misses nothing, see `MTLDataModule.missing`.
        split: Name of the split.
        watch: Called with the number of samples read so far.
    """
    samples: Samples = data.originals(split)
    findings = Findings(len(samples))
    seen = {name: _Seen() for name in data.tasks}
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
            faults = faults_of(sample, data.tasks)
            findings.faults += faults
            if not faults:
                for name, target in sample["targets"].items():
                    seen[name].add(data.tasks[name], target)
            findings.unlabelled.update(_unlabelled(sample, data.tasks))
        watch(index + 1)
    doubts = {name: seen[name].doubt(task) for name, task in data.tasks.items()}
    findings.doubts = [f"{name}: {doubt}" for name, doubt in doubts.items() if doubt] + data.doubts(split)
    return findings


class _Seen:
    """The values that the targets of one task take over a split, for kinds with few values."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, task: Task, target: torch.Tensor) -> None:
        if isinstance(task, SemanticSegmentation | BinaryMap):
            values, counts = target[target != IGNORE].long().unique(return_counts=True)
            self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def doubt(self, task: Task) -> str | None:
        """Returns what looks wrong and its likely cause; None if nothing does, or if no pixel is labelled."""
        total = self.counts.total()
        if not total:
            return None
        if isinstance(task, BinaryMap):
            share = self.counts[1] / total
            if share in (0, 1):
                return f"every labelled pixel is {int(share)}. Is the mask stored as 0/1 where 0/255 is expected?"
            if isinstance(task, Edges) and share > 0.5:
                return f"{share:.0%} of the pixels are edges. Is the map inverted?"
        elif isinstance(task, SemanticSegmentation) and task.classes > 2:
            last = task.classes - 1
            if not self.counts[last] and self.counts[0]:
                return f"class {last}, the last, never occurs. Are the stored ids one too low, or is the split small?"
            if not self.counts[0] and self.counts[last]:
                return "class 0, the first, never occurs. Are the stored ids one too high, or is the split small?"
        return None


def faults_of(sample: Sample, tasks: Mapping[str, Task]) -> list[str]:
    """Returns the faults of a sample's form and values, one per line; see `mtlbench.data`."""
    if fault := input_fault(sample):
        return [f"{sample['id']}: {fault}."]
    size = extent(inputs_of(sample))
    faults = []
    for name, target in sample["targets"].items():
        fault = form_fault(tasks[name], target, *size) or tasks[name].fault_within(target[None], *size)
        if fault:
            faults.append(f"{sample['id']}: {name}: {fault}.")
    return faults


def _unlabelled(sample: Sample, tasks: Mapping[str, Task]) -> list[str]:
    targets = sample["targets"]
    return [name for name, task in tasks.items() if name not in targets or task.count(targets[name][None]) == 0]
