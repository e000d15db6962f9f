"""`Scenes`: rendered 3-D scenes with exact labels for six tasks per pixel, and on request boxes and keypoints.

It needs no files; it is built on first use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.errors import SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import (
    IGNORE,
    Depth,
    Detection,
    Edges,
    HumanParts,
    Keypoints,
    Normals,
    Saliency,
    SemanticSegmentation,
    Task,
)
from mtlbench.tasks.geometry import LabelOptions

from . import rendering
from .dense.warp import Warp
from .rendering import JOINTS, MOST_PERSONS, MOST_THINGS, PART_CLASSES, SEMSEG_CLASSES, THING_CLASSES, motion

_LOG = logging.getLogger(__name__)

_REVISION = {False: "9d79d5dfa448a857", True: "e285f14de068911d"}
"""What finished runs know of the renderer, for still images and for clips. A test compares its pictures with stored
values; where they change on purpose, put any other string here, and runs on old pictures no longer count as done."""

_FIELDS = tuple(field.name for field in fields(rendering.Rendered) if field.name != "instance")
_JOINT = JOINTS.index
_PAIRS = tuple(
    (_JOINT(f"left_{name}"), _JOINT(f"right_{name}"))
    for name in ("hip", "knee", "ankle", "toe", "shoulder", "elbow", "wrist")
)
_LIMBS = tuple(
    (_JOINT(one), _JOINT(other))
    for one, other in (
        ("pelvis", "neck"), ("neck", "head"),
        *((f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (
            ("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"), ("shoulder", "elbow"), ("elbow", "wrist"),
        )),
        *((middle, f"{side}_{end}") for side in ("left", "right") for middle, end in (
            ("pelvis", "hip"), ("neck", "shoulder"),
        )),
    )
)  # fmt: skip
_LABELS = LabelOptions(axes="right-down")
_CHUNK = 50
"""Images rendered and written at a time."""


class Scenes(MTLDataModule):
    """Procedural 3-D scenes with exact labels.

    Every split has its own seed, so splits never share a scene, and a smaller split is the beginning of a larger one.
    With ``frames`` above 1 every scene is a clip, see `rendering.motion`: sample ``clip * frames + t`` is frame t of a
    clip, its id is ``test/<clip>@<t>``, and frame 0 is the still image of the same scene. Training shuffles frames.

    Args:
        root: Unused; the data needs no files.
        size: Height and width of the images, pixels, >= 8.
        train: Training scenes, >= 1.
        val: Validation scenes, >= 1.
        test: Test scenes, >= 1.
        frames: Frames of every scene, >= 1; 1 for still images.
        scene_seed: Which scenes, >= 0; independent of the seed of the run.
        instances: Whether the tasks ``detection`` and ``keypoints`` exist, see `INSTANCES`.
        typical: Share of things, 0 to 1, in the typical colours of their class, see `rendering.palette`. With 0,
            colours say nothing about the class.
        cache: Folder of rendered splits. None stands for ``$XDG_CACHE_HOME/mtlbench/scenes`` or, without that
            variable, ``~/.cache/mtlbench/scenes``. If it cannot be written, splits are kept in memory.
        **options: Options of `MTLDataModule`.

    Raises:
        SuiteError: If a size or count is out of range.

    Attributes:
        clip_length: Consecutive samples that are one clip.
    """

    VERSION: ClassVar[int] = 1
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    # Scales as in the survey of dense multi-task learning.
    TASKS: ClassVar[Mapping[str, Task]] = {
        task.name: task
        for task in (
            SemanticSegmentation("semseg", classes=len(SEMSEG_CLASSES), class_names=SEMSEG_CLASSES),
            HumanParts("parts", scale=2.0, classes=len(PART_CLASSES), class_names=PART_CLASSES),
            Saliency("saliency", scale=5.0),
            Normals("normals", scale=10.0),
            Depth("depth", scale=1.0),
            Edges("edges", scale=50.0, max_distance=0.016),
        )
    }
    INSTANCES: ClassVar[Mapping[str, Task]] = {
        task.name: task
        for task in (
            Detection("detection", most=MOST_THINGS, classes=len(THING_CLASSES), class_names=THING_CLASSES),
            Keypoints("keypoints", most=MOST_PERSONS, names=JOINTS, pairs=_PAIRS, limbs=_LIMBS),
        )
    }

    def __init__(
        self,
        root: str | None = None,
        *,
        size: int = 64,
        train: int = 2000,
        val: int = 250,
        test: int = 250,
        frames: int = 1,
        scene_seed: int = 0,
        typical: float = 0.0,
        instances: bool = False,
        cache: str | None = None,
        **options: Any,
    ):
        if options.get("tasks") is None:
            options["tasks"] = self.tasks_of({"instances": instances})
        super().__init__(root, **options)
        self.size, self.counts, self.clip_length = size, {"train": train, "val": val, "test": test}, frames
        self.scene_seed, self.typical = scene_seed, typical
        self.cache = Path(cache).expanduser() if cache else _default_cache()
        if size < 8 or min(*self.counts.values(), frames) < 1 or scene_seed < 0 or not 0 <= typical <= 1:
            raise SuiteError(
                "Scenes need size >= 8, at least one scene a split, one frame a scene, scene_seed >= 0, and typical "
                f"from 0 to 1. Found size {size}, {self.counts}, frames {frames}, scene_seed {scene_seed}, "
                f"typical {typical}."
            )
        self._arrays: dict[str, dict[str, NDArray[Any]]] = {}

    @classmethod
    def tasks_of(cls, options: Mapping[str, Any]) -> Mapping[str, Task]:
        """Returns the tasks per pixel and, with ``instances``, detection and keypoints."""
        return {**cls.TASKS, **cls.INSTANCES} if options.get("instances") else cls.TASKS

    def prepare_data(self) -> None:
        """Renders the splits that are not in the cache; safe while other processes do the same."""
        for split in self.SPLITS:
            self._load(split)

    def samples(self, split: str) -> Samples:
        """Returns the samples of a split; renders it if it is in neither cache nor memory.

        Raises:
            SuiteError: If there is no such split.
        """
        if split not in self.counts:
            raise SuiteError(f"Scenes have the splits {', '.join(self.SPLITS)}; found {split!r}.")
        return _SceneSamples(self._load(split), split, tuple(self.tasks), self.clip_length)

    def sample_count(self, split: str) -> int | None:
        """Returns the number of images of a split without rendering it."""
        return self.counts[split] * self.clip_length if split in self.counts else None

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Returns the sample mirrored half of the time, with small changes of brightness, contrast and colour."""
        mirror, brightness = generator.random() < 0.5, generator.uniform(-12, 12)
        contrast = generator.uniform(0.85, 1.15) * generator.uniform(0.95, 1.05, (3, 1, 1))
        gains = torch.as_tensor(contrast, dtype=torch.float32)
        image = ((sample["image"] - 127.5) * gains + (127.5 + brightness)).round_().clamp_(0, 255).to(torch.uint8)
        if not mirror:
            return {**sample, "image": image}
        geometry = Warp.window(image.shape[-2], image.shape[-1], 0, 0, flip=True)
        targets = {
            name: torch.from_numpy(self.tasks[name].warp(target.numpy(), geometry, _LABELS))
            for name, target in sample["targets"].items()
        }
        return {**sample, "image": image.flip(-1), "targets": targets}

    def fingerprint(self) -> str:
        """Returns a hash of the options that define the data and of the renderer's revision."""
        return self._identity(self.counts)

    def _identity(self, *what: object) -> str:
        """Returns a hash of what defines the data. Options that came later are in it only where they are used."""
        motion = (self.clip_length,) if self.clip_length > 1 else ()
        colours = ("typical", self.typical) if self.typical else ()
        return _digest(self.VERSION, self.size, *what, self.scene_seed, *colours, *motion, _REVISION[bool(motion)])

    def _load(self, split: str) -> dict[str, NDArray[Any]]:
        if split not in self._arrays:
            key = _digest(self._identity(split, self.counts[split]), _source())
            folder = self.cache / f"{split}-{self.counts[split]}x{self.size}-{key}"
            try:
                if not folder.is_dir():
                    self._build(split, folder)
                arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FIELDS}
            except (OSError, ValueError) as error:  # ValueError: numpy on a damaged file.
                _LOG.warning("Scenes are kept in memory, since the cache %s cannot be used: %s", self.cache, error)
                chunks = list(self._render(split))
                arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in _FIELDS}
            self._arrays[split] = arrays
        return self._arrays[split]

    def _build(self, split: str, folder: Path) -> None:
        """Writes a split beside its place and renames it: other processes see all of it or nothing."""
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self.cache))
        try:
            _write(draft, self._render(split), self.counts[split] * self.clip_length)
            draft.chmod(0o755)
            draft.rename(folder)
        except OSError:
            # Another process was first, with the same content; anything else is a fault.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _render(self, split: str) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the split in chunks, array by name; normals in half precision, which errs by less than 0.05°."""
        seed = seed_of("scenes", self.scene_seed, split)
        scenes = max(1, _CHUNK // self.clip_length)
        for start in range(0, self.counts[split], scenes):
            indices = range(start, min(start + scenes, self.counts[split]))
            chunk = self._draw(seed, indices)
            arrays = {name: getattr(chunk, name) for name in _FIELDS}
            yield {**arrays, "normals": chunk.normals.astype(np.float16)}

    def _draw(self, seed: int, indices: range) -> rendering.Rendered:
        if self.clip_length > 1:
            return motion.film(seed, indices, self.clip_length, self.size, self.size, self.typical)
        return rendering.render(seed, indices, self.size, self.size, self.typical)


class _SceneSamples:
    """Samples as tensors, cut from the arrays of one split."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], split: str, tasks: tuple[str, ...], frames: int):
        self.arrays, self.split, self.tasks, self.frames = arrays, split, tasks, frames

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sample {index} of {len(self)}.")
        index %= len(self)
        targets = {task: _target(task, self.arrays[task][index]) for task in self.tasks if task in self.arrays}
        if "parts" in targets and not targets["parts"].any():
            # As in PASCAL: an image without people has no label, and is not a picture full of background.
            del targets["parts"]
        image = torch.from_numpy(np.array(self.arrays["image"][index]))
        return {"image": image, "targets": targets, "id": f"{self.split}/{self._place(index)}"}

    def _place(self, index: int) -> str:
        clip, frame = divmod(index, self.frames)
        return f"{clip}@{frame}" if self.frames > 1 else str(clip)


def _target(task: str, label: NDArray[Any]) -> torch.Tensor:
    """Returns one label as the task's kind wants it."""
    if task in Scenes.INSTANCES:
        return torch.from_numpy(np.array(label))
    if task in ("semseg", "parts"):
        return torch.from_numpy(label.astype(np.int64))
    target = torch.from_numpy(label.astype(np.float32))
    if task == "normals":
        length = target.norm(dim=0)
        return torch.where(length > 0, target / length.clamp(min=0.5), float(IGNORE))
    target = target[None]
    return torch.where(target > 0, target, float(IGNORE)) if task == "depth" else target


def _write(folder: Path, chunks: Iterator[dict[str, NDArray[Any]]], count: int) -> None:
    """Writes one .npy a name, chunk by chunk, so that memory stays small and a full disk is an `OSError`."""
    for number, chunk in enumerate(chunks):
        for name, array in chunk.items():
            with (folder / f"{name}.npy").open("ab") as file:
                if number == 0:
                    header = {**np.lib.format.header_data_from_array_1_0(array), "shape": (count, *array.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(array).data)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mtlbench" / "scenes"


@lru_cache(maxsize=1)
def _source() -> str:
    """Returns a hash of the renderer's source, so that pictures in a cache are never older than the code."""
    return _digest(*((file.name, file.read_bytes()) for file in sorted(Path(rendering.__file__).parent.glob("*.py"))))


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
