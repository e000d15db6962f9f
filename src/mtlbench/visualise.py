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
VALUES = ("depth", "inverse_depth", "value_map")
DENSE = (*SEGMENTATION, *MAPS, "normals", *VALUES)
"""Kinds that `draw` knows."""

# Dark violet through red and orange to pale yellow: lightness rises evenly, so near and far read without colour too.
_DEPTH = np.array(
    [(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
     (252, 255, 164)], float,
)  # fmt: skip


@cache
def palette(count: int) -> Picture:
    """Returns distinct colours, (count, 3); class 0 is nearly black, as most suites keep it for the background."""
    colours = [(0.12, 0.12, 0.14)]
    for i in range(count - 1):
        # The golden angle puts neighbouring class ids far apart on the hue circle, however many there are.
        hue = (0.58 + i * 0.618034) % 1
        colours.append(colorsys.hsv_to_rgb(hue, (0.62, 0.85, 0.42)[i % 3], (0.95, 0.75, 0.88)[i % 3]))
    return np.round(255 * np.array(colours[:count])).astype(np.uint8)


def draw(
    kind: str, array: Array, class_names: Sequence[str] = (), limits: tuple[float, float] | None = None
) -> Picture:
    """Draws a label of a shipped kind by the kind's name, for runs that stored no pictures of their own.

    `mtlbench.tasks.Task.draw` is how a task draws itself; it needs torch, which the report does without.

    Args:
        kind: Kind of the task, one of `DENSE`.
        array: Class ids (H, W); probability (1, H, W) or (H, W); normals (3, H, W); or values (1, H, W) or (H, W).
        class_names: Names of the classes; only their number is used, so that colours agree with `legend`.
        limits: Nearest and farthest depth; give those of the truth to compare pictures. Default: of this array.

    Raises:
        ValueError: If the kind has no picture.
    """
    if kind in SEGMENTATION:
        return classes(array, len(class_names))
    if kind in MAPS:
        return grey(array)
    if kind == "normals":
        return normals(array)
    if kind in VALUES:
        return values(array, limits=limits)
    raise ValueError(unknown_name("kind of picture", kind, DENSE))


def classes(ids: Array, count: int) -> Picture:
    """Draws class ids (H, W) in the colours of `palette`."""
    ids = np.asarray(ids)
    absent = ids == IGNORE
    known = np.where(absent, 0, ids).astype(int)
    return _hatch(palette(max(count, int(known.max(initial=0)) + 1))[known], absent)


def grey(array: Array) -> Picture:
    """Draws shares in 0..1, (1, H, W) or (H, W), as black to white."""
    plane = _plane(array)
    level = 255 * np.clip(np.where(_absent(plane), 0, plane), 0, 1)
    return _hatch(np.repeat(level[..., None], 3, -1), _absent(plane))


def normals(array: Array) -> Picture:
    """Draws vectors (3, H, W) as colours: red, green and blue are the three components."""
    array = np.asarray(array, float)
    absent = _absent(array[0])
    length = np.linalg.norm(np.where(absent, 0, array), axis=0)
    unit = np.where(absent, 0, array) / np.maximum(length, 1e-9)
    return _hatch((unit.transpose(1, 2, 0) + 1) * 127.5, absent)


def values(array: Array, truth: Array | None = None, limits: tuple[float, float] | None = None) -> Picture:
    """Draws values of any meaning: one channel as a scale of colours, the first three of several as red, green, blue.

    Args:
        array: (H, W) or (C, H, W).
        truth: The same for the truth, whose range sets the colours. Default: ``array``.
        limits: Range of the colours of a single channel; default: that of the truth.
    """
    array = np.asarray(array, float)
    reference = array if truth is None else np.asarray(truth, float)
    if array.ndim == 2 or len(array) == 1:
        return _ramp(_plane(array), limits or depth_limits(reference))
    absent = _absent(array[0])
    shares = [_share(plane, depth_limits(own)) for plane, own in zip(array[:3], reference[:3], strict=True)]
    shares += [np.zeros_like(shares[0])] * (3 - len(shares))
    return _hatch(255 * np.stack(shares, -1), absent)


def boxes(image: Picture, corners: Array, ids: Array, count: int) -> Picture:
    """Draws boxes (N, 4), x0, y0, x1, y1 in pixels, on a copy of an image, in the colours of ``count`` classes."""
    sheet, colours = Image.fromarray(image), palette(count + 1)[1:]
    pen = ImageDraw.Draw(sheet)
    # The first are the most certain, so they are drawn last.
    for (x0, y0, x1, y1), index in reversed(list(zip(corners.tolist(), ids.tolist(), strict=True))):
        x0, y0 = math.floor(x0), math.floor(y0)
        outline = tuple(int(c) for c in colours[index])
        pen.rectangle((x0, y0, max(x0, math.ceil(x1) - 1), max(y0, math.ceil(y1) - 1)), outline=outline)
    return np.asarray(sheet)


def poses(image: Picture, points: Array, limbs: Sequence[tuple[int, int]]) -> Picture:
    """Draws keypoints (N, J, 3), x, y and visibility, on a copy of an image, with lines between those of a limb."""
    sheet, colours = Image.fromarray(image), palette(max(2, len(points) + 1))[1:]
    pen = ImageDraw.Draw(sheet)
    for pose, colour in zip(points, colours, strict=False):
        fill = tuple(int(c) for c in colour)
        places = [(math.floor(x), math.floor(y)) if seen > 0 else None for x, y, seen in pose.tolist()]
        for one, other in limbs:
            if (start := places[one]) and (stop := places[other]):
                pen.line((*start, *stop), fill=fill)
        for place in filter(None, places):
            pen.point(place, fill="white")
    return np.asarray(sheet)


def hatched(image: Picture) -> Picture:
    """Returns a picture of an image's size that says that there is no label."""
    return _hatch(image.astype(float), np.ones(image.shape[:2], bool))


def error(kind: str, prediction: Array, truth: Array) -> Picture:
    """Draws how wrong a dense prediction is: black where it is right, pale yellow where it is furthest off.

    Classes are right or wrong. Maps show the absolute difference, up to 1. Normals show the angle, up to 60 degrees.
    Depth and other values show the absolute difference, up to half of the label's range. Pixels without a label are
    hatched.

    Args:
        kind: Kind of the task, one of `DENSE`.
        prediction: As in `draw`.
        truth: Label of the same shape.

    Raises:
        ValueError: If the kind has no picture, or if the shapes differ.
    """
    ours, theirs = np.asarray(prediction, float), np.asarray(truth, float)
    if kind not in DENSE or ours.shape != theirs.shape:
        raise ValueError(
            f"Errors are drawn of a dense prediction and its label. Found {kind}, {ours.shape} and "
            f"{theirs.shape}. Give two arrays of the same shape."
        )
    if kind == "normals":
        lengths = np.linalg.norm(ours, axis=0) * np.linalg.norm(theirs, axis=0)
        cosine = (ours * theirs).sum(0) / np.where(lengths > 0, lengths, 1)
        share, absent = np.degrees(np.arccos(np.clip(cosine, -1, 1))) / 60, (lengths == 0) | _absent(theirs[0])
    elif kind in SEGMENTATION:
        share, absent = (ours != theirs).astype(float), theirs == IGNORE
    else:
        ours, theirs = _plane(ours), _plane(theirs)
        absent = _absent(theirs)
        low, high = (0.0, 1.0) if kind in MAPS else depth_limits(theirs)
        share = np.abs(ours - theirs) / max((high - low) * (1.0 if kind in MAPS else 0.5), 1e-9)
    return _coloured(np.nan_to_num(share), absent)


def depth_limits(array: Array) -> tuple[float, float]:
    """Returns the range of valid depth without its outermost hundredths."""
    plane = _plane(array)
    valid = plane[~_absent(plane)]
    if valid.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(valid, (1, 99))
    return float(low), float(high)


def caption(kind: str, value: Any, class_names: Sequence[str] = ()) -> str:
    """Returns a whole-image label by the name of its kind, for runs that stored no text; ``"–"`` for none."""
    return class_name(value, class_names) if kind == "classification" else number(value)


def class_name(value: Any, class_names: Sequence[str] = ()) -> str:
    """Returns the name of a class, its number where it has no name, ``"–"`` where there is none."""
    index = int(np.asarray(value).reshape(-1)[0])
    if index < 0:
        return "–"
    return str(class_names[index]) if index < len(class_names) else str(index)


def number(value: Any) -> str:
    """Returns numbers with three digits, at most three of them; ``"–"`` where there is none."""
    found = np.asarray(value, float).reshape(-1)
    if not np.isfinite(found[:3]).all():
        return "–"
    return ", ".join(f"{v:.3g}" for v in found[:3]) + (", …" if len(found) > 3 else "")


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


def rgb(picture: Image.Image) -> Picture:
    """Returns an image file's pixels as RGB uint8; grey of 16 bits and floats are scaled by their range.

    Pillow cuts them off at 255 instead. Floats up to 1 count as shares, up to 255 as bytes, else as 16 bits.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        level = np.asarray(picture, float)
        top = 65535.0
        if picture.mode == "F":
            highest = level[np.isfinite(level)].max(initial=0)
            top = next((limit for limit in (1.0, 255.0) if highest <= limit), top)
        grey_levels = np.round(np.clip(np.nan_to_num(level) / top, 0, 1) * 255).astype(np.uint8)
        return np.repeat(grey_levels[..., None], 3, -1)
    return np.array(picture.convert("RGB"))


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


def _share(plane: Array, limits: tuple[float, float]) -> Array:
    low, high = limits
    return np.clip((np.where(_absent(plane), low, plane) - low) / max(high - low, 1e-9), 0, 1)


def _ramp(plane: Array, limits: tuple[float, float]) -> Picture:
    return _coloured(_share(plane, limits), _absent(plane))


def _coloured(share: Array, absent: Array) -> Picture:
    stops = np.linspace(0, 1, len(_DEPTH))
    return _hatch(np.stack([np.interp(share, stops, _DEPTH[:, c]) for c in range(3)], -1), absent)
