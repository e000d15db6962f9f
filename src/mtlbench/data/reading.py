"""Samples as they are read: with errors that name the sample, and without augmentation."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import Dataset

from mtlbench.data.contract import Sample, Samples
from mtlbench.errors import DataError


class Readable(Dataset):
    """Names the sample whose file cannot be read, for example because the file vanished while a run was training."""

    def __init__(self, samples: Samples, split: str):
        self.samples, self.split = samples, split

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.samples[index]
        except OSError as error:
            raise DataError(
                f"Files of the data must stay readable. Sample {index} of the split {self.split}: {error}. Put the "
                "file back; the bench with --retry (RETRY=1) then resumes from the last checkpoint."
            ) from error


class Viewed:
    """Training samples without augmentation, in the form of the other splits."""

    def __init__(self, samples: Samples, view: Callable[[Sample], Sample]):
        self.samples, self.view = samples, view

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.view(self.samples[index])
