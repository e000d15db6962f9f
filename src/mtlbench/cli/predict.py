"""``mtlbench predict``."""

from __future__ import annotations

import argparse
import csv
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
    from mtlbench.training.load import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds run, files and the folder for the predictions."""
    parser.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="FILE",
        help="images; or tables, arrays, molecules (.csv, .smi) or lines of text (.txt), for a run on such data",
    )
    parser.add_argument("--out", default="predictions", help="folder for the predictions (default: predictions)")
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="also write <file>.npz: predictions at the photograph's original size; always done for actions",
    )
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes a finished run's predictions: a picture per image with a panel per task, or a CSV file per table."""
    out, images = Path(arguments.out), [Path(image) for image in arguments.images]
    finished_run(Path(arguments.run_folder))  # Refused before torch is imported, as are absent images.
    for path in images:
        if not os.path.isfile(path):
            raise DataError(f"An input must be a file. There is no {path}.")
    import torch

    from mtlbench.training.load import load_run

    loaded = load_run(arguments.run_folder, allow=arguments.allow)
    out.mkdir(parents=True, exist_ok=True)
    predict = _image if "image_size" in loaded.spec.model else _rows
    written = {path.resolve() for path in images}  # An input in the same folder is never overwritten.
    for path in images:
        with torch.no_grad():
            print(f"{path} -> {predict(loaded, path, out, written, arrays=arguments.arrays)}")
    return 0


def _image(loaded: LoadedRun, path: Path, out: Path, written: set[Path], *, arrays: bool) -> str:
    """Draws the predictions of one image; returns the file, and the predictions of tasks that are not dense."""
    import torch
    from torch.nn import functional as F

    height, width = loaded.spec.model["image_size"]
    photo = torch.from_numpy(_read(path)).permute(2, 0, 1)[None]
    small = F.interpolate(photo.float(), (height, width), mode="bilinear", antialias=True).round().to(torch.uint8)
    tasks, panels, words = loaded.method.tasks, [small[0].permute(1, 2, 0).numpy()], []
    raw = {name: value.float() for name, value in loaded.method(small).items()}
    for name, task in tasks.items():
        value = task.decode(raw[name])[0].numpy()
        if task.dense:
            panels.append(task.draw_on(panels[0], value))
        else:
            words.append(f"{name} {task.caption(value)}")
    heads = ["image", *(name for name, task in tasks.items() if task.dense)]
    target = _free(out, f"{path.stem}.png", written)
    target.write_bytes(visualise.png(visualise.montage([panels], heads=heads), longest=None))
    if arrays:
        np.savez_compressed(target.with_suffix(".npz"), **_arrays(tasks, raw, photo.shape[-2:]))
    return f"{target}  {'; '.join(words)}"


CHUNK = 256
"""Samples of a file that are predicted at once."""


def _rows(loaded: LoadedRun, path: Path, out: Path, written: set[Path], *, arrays: bool) -> str:
    """Writes the predictions of all samples of a file as CSV, one line per sample and one column per task."""
    from mtlbench.data import Collate
    from mtlbench.tasks.inputs import inputs_of

    samples: Any = loaded.data.read(path)
    tell = getattr(samples, "tell", lambda *_: None)
    tasks = loaded.method.tasks
    ids: list[str] = []
    decoded: dict[str, list[Any]] = {name: [] for name in tasks}
    for start in range(0, len(samples), CHUNK):
        batch = Collate({})([samples[index] for index in range(start, min(start + CHUNK, len(samples)))])
        raw = loaded.method(inputs_of(batch))
        ids += batch["id"]
        for name, task in tasks.items():
            decoded[name].extend(task.decode(raw[name].float()).numpy())
    target = _free(out, f"{path.stem}.csv", written)
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", *tasks])
        for index, name in enumerate(ids):
            told = {key: tell(key, index, decoded[key][index]) for key in tasks}
            cells = (
                _cell(task, decoded[key][index]) if told[key] is None else told[key] for key, task in tasks.items()
            )
            table.writerow([name, *cells])
    if arrays or any(task.array for task in tasks.values()):
        # Predictions per token are told in words: their number differs between texts.
        whole: dict[str, Any] = {name: np.array(decoded[name]) for name, task in tasks.items() if not task.per_token}
        if whole:
            np.savez_compressed(target.with_suffix(".npz"), **whole)
    return f"{target}  {len(samples)} rows"


def _cell(task: Task, value: Any) -> str:
    """Returns a prediction as a cell: a number with all its digits, anything else as the task words it."""
    number = np.ndim(value) == 0 and np.issubdtype(value.dtype, np.floating)
    return repr(float(value)) if number else task.caption(value)


def _arrays(tasks: Mapping[str, Task], raw: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Any]:
    """Returns decoded predictions by task, dense ones at another height and width."""
    return {name: task.decode_at(raw[name], *size)[0].numpy() for name, task in tasks.items()}


def _free(out: Path, name: str, written: set[Path]) -> Path:
    """Returns where a file goes; inputs of one name and different folders get numbers: a.png, a-2.png."""
    stem, _, ending = name.rpartition(".")
    names = (out / f"{stem}{f'-{number}' if number > 1 else ''}.{ending}" for number in itertools.count(1))
    target = next(path for path in names if path.resolve() not in written)
    written.add(target.resolve())
    return target


def _read(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return visualise.rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
        raise DataError(
            f"This run predicts images. {path} cannot be read as one: {type(error).__name__}: {error}. Give a file "
            "in a format that Pillow reads, such as PNG or JPEG."
        ) from error
