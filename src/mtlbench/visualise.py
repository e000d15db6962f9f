"""Pictures of labels and predictions, for the report and `mtlbench predict`. numpy and PIL only."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtlbench.errors import unknown_name

Array = NDArray[Any]
Picture = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

IGNORE = 255
"""Ignore value of dense labels (as in `mtlbench.tasks`, which cannot be imported without torch)."""

SEGMENTATION = ("semantic_segmentation", "human_parts")
MAPS = ("saliency", "edges")
DENSE = (*SEGMENTATION, *MAPS, "normals", "depth")
"""Kinds that `draw` knows."""

# Dark violet through red and orange to pale yellow: lightness rises evenly, so near and far read without colour too.
_DEPTH = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)], float,
)  # fmt: skip


@cache
def palette(classes: int) -> Picture:
    """Returns distinct colours, (classes, 3); class 0 is nearly black, as most suites keep it for the background."""
    colours = [(0.12, 0.12, 0.14)]
    for i in range(classes - 1):
        # The golden angle puts neighbouring class ids far apart on the hue circle, however many there are.
        hue = (0.58 + i * 0.618034) % 1
        colours.append(colorsys.hsv_to_rgb(hue, (0.62, 0.85, 0.42)[i % 3], (0.95, 0.75, 0.88)[i % 3]))
    return np.round(255 * np.array(colours[:classes])).astype(np.uint8)


def draw(
    kind: str, array: Array, class_names: Sequence[str] = (), limits: tuple[float, float] | None = None
) -> Picture:
    """Returns a picture of one dense label or prediction. Elements without a label are hatched.

    Args:
        kind: Kind of the task, one of `DENSE`.
        array: Class ids (H, W); probability (1, H, W) or (H, W); normals (3, H, W); or metres (1, H, W) or (H, W).
        class_names: Names of the classes; only their number is used, so that colours agree with `legend`.
        limits: Nearest and farthest depth; give those of the truth to compare pictures. Default: of this array.

    Raises:
        ValueError: If the kind has no picture.
    """
    if kind in SEGMENTATION:
        return _classes(np.asarray(array), len(class_names))
    if kind in MAPS:
        plane = _plane(array)
        grey = 255 * np.clip(np.where(_absent(plane), 0, plane), 0, 1)
        return _hatch(np.repeat(grey[..., None], 3, -1), _absent(plane))
    if kind == "normals":
        return _normals(np.asarray(array, float))
    if kind == "depth":
        return _depth(_plane(array), limits or depth_limits(array))
    raise ValueError(unknown_name("kind of picture", kind, DENSE))


def depth_limits(array: Array) -> tuple[float, float]:
    """Returns the range of valid depth without its outermost hundredths."""
    plane = _plane(array)
    valid = plane[~_absent(plane)]
    if valid.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(valid, (1, 99))
    return float(low), float(high)


def caption(kind: str, value: Any, class_names: Sequence[str] = ()) -> str:
    """Returns a whole-image label or prediction as text; ``"–"`` where there is none."""
    number = float(np.asarray(value).reshape(-1)[0])
    if not np.isfinite(number) or (kind == "classification" and number < 0):
        return "–"
    if kind == "classification":
        index = int(number)
        return str(class_names[index]) if index < len(class_names) else str(index)
    return f"{number:.3g}"


def legend(class_names: Sequence[str]) -> Picture:
    """Returns a picture that lists the classes beside their colours."""
    line, width = 18, 28 + _widest(class_names)
    sheet = Image.new("RGB", (width, line * max(len(class_names), 1)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(zip(class_names, palette(len(class_names)), strict=True)):
        pen.rectangle((2, i * line + 2, 16, i * line + 15), fill=tuple(int(c) for c in colour))
        pen.text((22, i * line + 2), str(name), fill="black", font=_font())
    return np.asarray(sheet)


def montage(
    rows: Sequence[Sequence[Picture]], heads: Sequence[str] = (), names: Sequence[str] = (), gap: int = 4
) -> Picture:
    """Returns pictures on one white sheet, each cell as large as the largest picture or heading.

    Args:
        rows: Rows of pictures; rows may differ in length.
        heads: Text above the columns.
        names: Text left of the rows.
        gap: Pixels between pictures.
    """
    height = max(p.shape[0] for row in rows for p in row)
    width = max(_widest(heads), *(p.shape[1] for row in rows for p in row))
    top = 18 if heads else 0
    left = 8 + _widest(names) if names else 0
    size = (left + max(map(len, rows)) * (width + gap), top + len(rows) * (height + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((left + column * (width + gap), 2), str(head), fill="black", font=_font())
    for i, row in enumerate(rows):
        y = top + i * (height + gap)
        if i < len(names):
            pen.text((2, y + height // 2 - 6), str(names[i]), fill="black", font=_font())
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (left + column * (width + gap), y))
    return np.asarray(sheet)


def png(picture: Picture, longest: int | None = None) -> bytes:
    """Returns a picture as PNG, shrunk so that its longest side has at most ``longest`` pixels."""
    image = Image.fromarray(picture)
    if longest and max(image.size) > longest:
        image.thumbnail((longest, longest))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _font() -> Any:
    return ImageFont.load_default(12)


def _widest(texts: Sequence[str]) -> int:
    return max((math.ceil(_font().getlength(str(text))) for text in texts), default=0)


def _plane(array: Array) -> Array:
    plane = np.asarray(array, float)
    return plane[0] if plane.ndim == 3 else plane


def _absent(plane: Array) -> Array:
    return (plane == IGNORE) | ~np.isfinite(plane)


def _hatch(colour: Array, absent: Array) -> Picture:
    # Stripes, because every plain colour already means something in one of the pictures.
    y, x = np.indices(absent.shape)
    stripes = np.where((x + y) // 3 % 2, 205, 165)[..., None]
    return np.round(np.where(absent[..., None], stripes, colour)).astype(np.uint8)


def _classes(ids: Array, classes: int) -> Picture:
    absent = ids == IGNORE
    known = np.where(absent, 0, ids).astype(int)
    return _hatch(palette(max(classes, int(known.max(initial=0)) + 1))[known], absent)


def _normals(array: Array) -> Picture:
    absent = _absent(array[0])
    length = np.linalg.norm(np.where(absent, 0, array), axis=0)
    unit = np.where(absent, 0, array) / np.maximum(length, 1e-9)
    return _hatch((unit.transpose(1, 2, 0) + 1) * 127.5, absent)


def _depth(plane: Array, limits: tuple[float, float]) -> Picture:
    near, far = limits
    share = np.clip((np.where(_absent(plane), near, plane) - near) / max(far - near, 1e-9), 0, 1)
    stops = np.linspace(0, 1, len(_DEPTH))
    return _hatch(np.stack([np.interp(share, stops, _DEPTH[:, c]) for c in range(3)], -1), _absent(plane))
