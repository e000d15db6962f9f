"""``mtlbench predict``."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlbench import visualise
from mtlbench.cli.arguments import add_allow
from mtlbench.errors import DataError
from mtlbench.runs.store import finished_run

if TYPE_CHECKING:
    from torch import Tensor

    from mtlbench.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds run, images and the folder for the pictures."""
    parser.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--out", default="predictions", help="folder for the pictures (default: predictions)")
    parser.add_argument(
        "--arrays", action="store_true", help="also write <image>.npz: each prediction at the photograph's own size"
    )
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draws a finished run's predictions: one picture per image, one panel per task."""
    out, images = Path(arguments.out), [Path(image) for image in arguments.images]
    finished_run(Path(arguments.run_folder))  # Refused before torch is imported, as are absent images.
    for path in images:
        if not os.path.isfile(path):
            raise DataError(f"An image must be a file. There is no {path}.")
    import torch
    from torch.nn import functional as F

    from mtlbench.training.load import load_run

    loaded = load_run(arguments.run_folder, allow=arguments.allow)
    names = list(loaded.method.tasks)
    out.mkdir(parents=True, exist_ok=True)
    written: set[Path] = set()
    height, width = loaded.spec.model["image_size"]
    for path in images:
        photo = torch.from_numpy(_read(path)).permute(2, 0, 1)[None]
        small = F.interpolate(photo.float(), (height, width), mode="bilinear", antialias=True).round().to(torch.uint8)
        with torch.no_grad():
            raw = {name: value.float() for name, value in loaded.method(small).items()}
        panels = [small[0].permute(1, 2, 0).numpy()]
        words = []
        for name in names:
            task = loaded.method.tasks[name]
            value = task.decode(raw[name])[0].numpy()
            if task.dense:
                panels.append(task.draw(value))
            else:
                words.append(f"{name} {task.caption(value)}")
        heads = ["image", *(name for name in names if loaded.method.tasks[name].dense)]
        target = _free(out, path.stem, written)
        target.write_bytes(visualise.png(visualise.montage([panels], heads=heads), longest=None))
        if arguments.arrays:
            np.savez_compressed(target.with_suffix(".npz"), **_arrays(loaded.method.tasks, raw, photo.shape[-2:]))
        print(f"{path} -> {target}  {'; '.join(words)}")
    return 0


def _arrays(tasks: Mapping[str, Task], raw: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Any]:
    """Returns decoded predictions by task, dense ones at another height and width.

    Raw outputs are resized, not decoded ones: class ids and unit vectors have no values in between.
    """
    from torch.nn import functional as F

    found: dict[str, Any] = {}
    for name, task in tasks.items():
        value = F.interpolate(raw[name], tuple(size), mode="bilinear") if task.dense else raw[name]
        found[name] = task.decode(value)[0].numpy()
    return found


def _free(out: Path, stem: str, written: set[Path]) -> Path:
    """Returns where a picture goes; images of one name and different folders get numbers: a.png, a-2.png."""
    names = (out / f"{stem}{f'-{number}' if number > 1 else ''}.png" for number in itertools.count(1))
    target = next(path for path in names if path not in written)
    written.add(target)
    return target


def _read(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return visualise.rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
        raise DataError(
            f"An image must be readable. {path}: {type(error).__name__}: {error}. Formats: whatever Pillow reads."
        ) from error
