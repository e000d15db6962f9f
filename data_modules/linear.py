"""`Linear`: labels that are a linear function of a linear representation, so that related tasks are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.errors import SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import Regression, Task
from mtlbench.tasks.inputs import VECTORS

HEAD = (1.0, 0.0, 0.0, 0.0)


class Linear(MTLDataModule):
    """Samples of one task: x is standard normal, and its label is w · B x and noise.

    B maps x to K numbers with orthonormal rows. It depends on ``features`` and K alone, so tasks with heads w of one
    length share the representation, and which tasks help another is known from their heads. Samples depend on task,
    split and number. In `data_modules.union:Union`, each task is a stream.

    Args:
        root: Not used: samples are computed.
        task: Name of the task.
        head: w, K numbers.
        features: Length of x, >= K.
        noise: Standard deviation of the noise, >= 0.
        train: Training samples.
        val: Validation samples.
        test: Test samples.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]] = {"linear": Regression("linear")}
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    INPUTS: ClassVar[str] = VECTORS

    def __init__(
        self,
        root: str | None = None,
        *,
        task: str = "linear",
        head: Sequence[float] = HEAD,
        features: int = 20,
        noise: float = 0.1,
        train: int = 1000,
        val: int = 200,
        test: int = 1000,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        super().__init__(root, tasks=self.tasks_of({"task": task}) if tasks is None else tasks, **common)
        self.task, self.head = task, np.asarray(head, dtype=np.float64)
        self.features, self.noise, self.counts = features, noise, {"train": train, "val": val, "test": test}
        if self.head.ndim != 1 or not 1 <= len(self.head) <= features or not np.isfinite(self.head).all():
            raise SuiteError(
                f"data.options.head is a list of 1 to `features` finite numbers. Found {head!r}, features={features}."
            )
        if min(self.counts.values()) < 1 or not 0 <= noise < float("inf"):
            raise SuiteError(
                "train, val and test are at least 1, and noise is a finite number from 0. Found "
                f"{self.counts}, noise={noise}."
            )

    @classmethod
    def tasks_of(cls, options: Mapping[str, Any]) -> Mapping[str, Task]:
        """Returns the one task under its name."""
        name = str(options.get("task", "linear"))
        return {name: Regression(name)}

    def input_sizes(self) -> dict[str, int]:
        """Returns the length of x."""
        return {"features": self.features}

    def fingerprint(self) -> str:
        """Returns the version: options determine the samples."""
        return f"linear {self.VERSION}"

    def sample_count(self, split: str) -> int | None:
        """Returns the number of samples of a split."""
        return self.counts.get(split)

    def samples(self, split: str) -> Samples:
        """Returns the samples of a split."""
        if split not in self.counts:
            raise SuiteError(f"Linear tasks have the splits {', '.join(self.counts)}. Found {split!r}.")
        return _Samples(self, split)


class _Samples:
    """Samples of one split, computed together."""

    def __init__(self, data: Linear, split: str):
        self.task, self.split, count = data.task, split, data.counts[split]
        generator = np.random.default_rng(seed_of("linear", data.task, split))
        x = generator.standard_normal((count, data.features))
        noise = generator.standard_normal(count)
        labels = x @ representation(data.features, len(data.head)).T @ data.head + data.noise * noise
        self.x, self.labels = torch.from_numpy(x).float(), torch.from_numpy(labels).float()
        self.labelled = data.task in data.tasks

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample:
        targets = {self.task: self.labels[index]} if self.labelled else {}
        return {"inputs": self.x[index], "targets": targets, "id": f"{self.task}-{self.split}-{index}"}


def representation(features: int, size: int) -> np.ndarray:
    """Returns B (size, features) with orthonormal rows."""
    drawn = np.random.default_rng(seed_of("representation", features, size)).standard_normal((features, size))
    return np.linalg.qr(drawn)[0].T
