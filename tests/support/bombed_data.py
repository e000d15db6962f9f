"""Digits whose validation images end the process that reads them, once, at a read that a file names."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from mtlbench.data import Sample, Samples
from mtlbench.data_modules import digits


class Bombed(digits.Digits):
    """Counts the reads of validation images; kills this process at the one that ``<root>/bomb`` names."""

    def samples(self, split: str) -> Samples:
        found = super().samples(split)
        return _Counted(found, Path(str(self.root)) / "bomb") if split == "val" else found

    def fingerprint(self) -> str:
        """The folder holds no data."""
        return "bombed"


class _Counted:
    reads = 0

    def __init__(self, samples: Samples, bomb: Path):
        self.samples, self.bomb = samples, bomb

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        _Counted.reads += 1
        if self.bomb.exists() and _Counted.reads == int(self.bomb.read_text()):
            self.bomb.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.samples[index]
