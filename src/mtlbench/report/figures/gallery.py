"""Example predictions: the image, the truth, and the prediction of every method side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from mtlbench import visualise
from mtlbench.report.reader import ReportInput

SHOWN = 3
"""Images in the gallery."""

LONGEST = 160
"""Pixels of the longest side of a picture in the page."""

_FEW = 64
"""Pictures of at most so many colours are stored as PNG."""

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Tile:
    """One picture or, for whole-image tasks, one word.

    Attributes:
        source: PNG as a data URI, ``""`` where there is none.
        text: What it shows, or the word itself.
        width, height: Pixels.
    """

    source: str = ""
    text: str = "–"
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Exhibit:
    """One example image.

    Attributes:
        image: The input, or its name where it is no image.
        heads: ``"truth"``, then labels.
        rows: Tiles per task, in the order of ``heads``.
    """

    image: Tile
    heads: tuple[str, ...]
    rows: dict[str, tuple[Tile, ...]]


def exhibits(study: ReportInput, labels: Iterable[str], done: Iterable[str]) -> list[Exhibit]:
    """Returns the first few examples with the predictions of each label's first seed that has them.

    Args:
        study: The study.
        labels: Labels in the order of the table.
        done: Ids of runs whose examples count.
    """
    loaded = {label: _load(study, label, set(done)) for label in labels}
    loaded = {label: arrays for label, arrays in loaded.items() if arrays}
    if not loaded:
        return []
    first = next(iter(loaded.values()))
    count = min(SHOWN, len(_inputs(next(iter(first.values())))))
    return [_exhibit(study, loaded, i) for i in range(count)]


def _load(study: ReportInput, label: str, done: set[str]) -> dict[str, Arrays]:
    """Returns the arrays of the run that serves each task, of the first seed that has any."""
    for entry in sorted((e for e in study.plan["rows"] if e["label"] == label), key=lambda e: e["seed"]):
        files = {task: study.folder / run / "examples.npz" for task, run in entry["serving"].items() if run in done}
        opened = {path: _open(path) for path in set(files.values())}
        found = {t: arrays for t, path in files.items() if (arrays := opened[path]) and f"prediction/{t}" in arrays}
        if found:
            return found
    return {}


def _open(path: Path) -> Arrays | None:
    """Returns the arrays, read once; ``None`` if absent or broken, for a picture is never worth a report."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception:  # A broken archive raises many things.
        return None


def _exhibit(study: ReportInput, loaded: Mapping[str, Mapping[str, Arrays]], index: int) -> Exhibit:
    tasks = [t for t in study.plan["tasks"] if any(t in arrays for arrays in loaded.values())]
    some = next(arrays for by_task in loaded.values() for arrays in by_task.values())
    one = _inputs(some)[index]
    named = one.dtype.kind == "U"
    image = _word(one) if named else _picture(np.ascontiguousarray(one.transpose(1, 2, 0)), "input image")
    rows: dict[str, tuple[Tile, ...]] = {}
    for task in tasks:
        first = next(by_task[task] for by_task in loaded.values() if task in by_task)
        label_tiles = [
            _tile(study, task, by_task.get(task), "prediction", index, f"{task}, {label}")
            for label, by_task in loaded.items()
        ]
        rows[task] = (_tile(study, task, first, "target", index, f"{task}, truth"), *label_tiles)
        wrong = [
            _error(study, task, by_task.get(task), index, f"{task}, error of {x}") for x, by_task in loaded.items()
        ]
        if any(tile.source for tile in wrong):
            rows[f"{task}, error"] = (Tile(text=""), *wrong)
    return Exhibit(image, ("truth", *loaded), rows)


def _inputs(arrays: Arrays) -> Any:
    """Returns the images, or the names of inputs that are none."""
    return arrays["image"] if "image" in arrays else arrays["input"]


def _word(text: Any) -> Tile:
    # A results folder may come from elsewhere: no control characters, and nothing that turns the direction of text.
    return Tile(text="".join(letter for letter in str(text) if letter.isprintable()))


def _tile(study: ReportInput, task: str, arrays: Arrays | None, what: str, index: int, text: str) -> Tile:
    """Returns what a run stored of a label or a prediction: a picture or a text that its task made."""
    values = arrays.get(f"{what}/{task}") if arrays else None
    if arrays is None or values is None or len(values) <= index:
        return Tile()
    shown = arrays.get(f"shown/{what}/{task}")
    if shown is None:
        return _redrawn(study, task, arrays, values[index], index, text)
    if shown.dtype.kind != "U":
        return _picture(shown[index], text)
    return _word(shown[index])


def _redrawn(study: ReportInput, task: str, arrays: Arrays, value: Any, index: int, text: str) -> Tile:
    """Draws a value of a shipped kind, for runs of versions that stored no pictures."""
    about = study.plan["tasks"][task]
    kind, names = about["kind"], about.get("class_names") or ()
    if kind in visualise.DENSE:
        truth = arrays.get(f"target/{task}")
        limits = visualise.depth_limits(truth[index]) if kind in visualise.VALUES and truth is not None else None
        return _picture(visualise.draw(kind, value, names, limits), text)
    return Tile(text=visualise.caption(kind, value, names) if np.size(value) == 1 else "no picture")


def _error(study: ReportInput, task: str, arrays: Arrays | None, index: int, text: str) -> Tile:
    """Returns the map of errors of a dense prediction; a blank where there is none or it cannot be drawn."""
    names = f"prediction/{task}", f"target/{task}"
    if arrays is None or not set(names) <= arrays.keys():
        return Tile()
    try:
        ours, theirs = (arrays[name][index] for name in names)
        return _picture(visualise.error(study.plan["tasks"][task]["kind"], ours, theirs), text)
    except (ValueError, TypeError, IndexError):  # A kind of the user's own, or arrays of another shape.
        return Tile()


def _picture(picture: visualise.Picture, text: str) -> Tile:
    """Returns a picture as PNG, which is best for areas of few colours, or as WebP, for all others."""
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST, LONGEST))
    lossy = image.getcolors(_FEW) is None and features.check("webp")
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85, method=2) if lossy else image.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return Tile(f"data:image/{'webp' if lossy else 'png'};base64,{data}", text, *image.size)
