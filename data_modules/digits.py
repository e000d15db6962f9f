"""`digits`: two real handwritten digits overlaid on one canvas, several tasks on one image. Runs take seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.seeding import seed_of
from mtlbench.tasks import IGNORE, Classification, Regression, SemanticSegmentation, Task

CANVAS = (24, 32)
"""Height and width in pixels; not square, so that a swapped axis shows."""

PLACES = (slice(0, 16), slice(4, 20)), (slice(8, 24), slice(12, 28))
"""Rows and columns of the left and of the right digit: they share a quarter of their area."""


class Digits(MTLDataModule):
    """Pairs of the 1797 handwritten digits that ship with scikit-learn (UCI Optical Recognition, 8 × 8 pixels).

    Each digit is enlarged to 16 × 16; the left one lies to the upper left, the right one to the lower right, and
    they overlap. Tasks: the class of either digit, the sum of both, the share of inked pixels, and which pixels
    belong to which digit (pixels of both have no label). Writers of training and validation digits differ (first
    1400 images, the rest).

    Args:
        root: Not used: the digits ship with a package.
        train: Training pairs.
        val: Validation pairs.
        drop: Share of labels left out at random, per task, in training.
        **common: See `MTLDataModule`.
    """

    VERSION = 2
    TASKS: ClassVar[Mapping[str, Task]] = {
        "left": Classification("left", classes=10),
        "right": Classification("right", classes=10),
        "sum": Regression("sum", mean=9.0, std=4.1),
        "ink": Regression("ink", mean=0.23, std=0.02),
        "segments": SemanticSegmentation(
            "segments", classes=3, class_names=("paper", "left", "right"), scale=2.0, protocol="segments_miou@1"
        ),
    }

    DIGITS: ClassVar[Mapping[str, tuple[int, int]]] = {"train": (0, 1400), "val": (1400, 1797)}
    """Which digits a split draws its pairs from."""

    def __init__(
        self, root: str | None = None, *, train: int = 4000, val: int = 500, drop: float = 0.0, **common: object
    ):
        super().__init__(root, **common)  # type: ignore[arg-type]
        self.size = {"train": train, "val": val}
        self.drop = drop
        self._split: dict[str, _Pairs] = {}

    def samples(self, split: str) -> Samples:
        """Returns the pairs of a split, drawn once and kept."""
        if split not in self._split:
            drop = self.drop if split == "train" else 0.0
            self._split[split] = _Pairs(split, np.arange(*self.DIGITS[split]), self.size[split], drop, self.tasks)
        return self._split[split]

    def sample_count(self, split: str) -> int | None:
        """Returns the number of pairs of a split."""
        return self.size.get(split)

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Moves the whole canvas by up to one pixel; both digits and their mask move together."""
        shift = tuple(int(v) for v in generator.integers(-1, 2, size=2))
        targets = dict(sample["targets"])
        if "segments" in targets:
            targets["segments"] = torch.roll(targets["segments"], shift, (-2, -1))
        return {**sample, "image": torch.roll(sample["image"], shift, (-2, -1)), "targets": targets}

    def fingerprint(self) -> str:
        """Returns a hash of the pixels that the package ships."""
        import hashlib

        images, labels = _source()
        return hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=8).hexdigest()


class HeldOutDigits(Digits):
    """`Digits` with a test split, for what chooses by validation: digits 1400 to 1599 validate, the rest test.

    Args:
        root: Not used.
        test: Test pairs.
        **options: See `Digits`.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    DIGITS: ClassVar[Mapping[str, tuple[int, int]]] = {"train": (0, 1400), "val": (1400, 1600), "test": (1600, 1797)}

    def __init__(self, root: str | None = None, *, test: int = 500, **options: object):
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.size["test"] = test


class _Pairs:
    """Overlaid pairs, a function of split and index alone."""

    def __init__(self, split: str, pool: np.ndarray, size: int, drop: float, tasks: Mapping[str, Task]):
        images, labels = _source()
        generator = np.random.default_rng(seed_of("digits", split, size))
        pairs = generator.choice(pool, size=(size, 2))
        self.split, self.tasks = split, tasks
        self.images, self.masks = _overlay(images[pairs[:, 0]], images[pairs[:, 1]])
        self.labels = labels[pairs]
        self.dropped = {name: generator.random(size) < drop for name in Digits.TASKS}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        left, right = (int(value) for value in self.labels[index])
        targets = {
            "left": torch.tensor(left),
            "right": torch.tensor(right),
            "sum": torch.tensor(float(left + right)),
            "ink": torch.tensor(float((self.masks[index] > 0).mean())),
            "segments": torch.from_numpy(self.masks[index].astype(np.int64)),
        }
        kept = {name: targets[name] for name in self.tasks if not self.dropped[name][index]}
        image = torch.from_numpy(np.repeat(self.images[index][None], 3, axis=0))
        return {"image": image, "targets": kept, "id": f"{self.split}-{index:05d}"}


def _source() -> tuple[np.ndarray, np.ndarray]:
    """Returns 1797 images (8, 8), 0..16, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype(np.float32), found.target


def _overlay(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 canvases (N, H, W) and class maps: 0 paper, 1 left, 2 right, `IGNORE` both."""
    canvas = np.zeros((2, len(left), *CANVAS), dtype=np.float32)
    for layer, digits, place in zip(canvas, (left, right), PLACES, strict=True):
        layer[(slice(None), *place)] = digits.repeat(2, axis=1).repeat(2, axis=2)
    ink = canvas > 6
    classes = np.where(ink.all(0), IGNORE, ink[0] + 2 * ink[1])
    return (canvas.max(0) * (255 / 16)).astype(np.uint8), classes.astype(np.uint8)
