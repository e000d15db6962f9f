"""``mtlbench init``: a small project that works at once."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mtlbench.errors import MtlbenchError

FILES = {
    "README.md": "README.md",
    "photos.py": "photos.py",
    "my_method.py": "my_method.py",
    "test_project.py": "test_project.py",
    "photos.yaml": "experiments/photos.yaml",
}
"""Template in ``cli/project/`` -> file of the project."""

SHAPES = ("circle", "square", "triangle")
PIXELS = 32
IMAGES = {"train": 96, "val": 48}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the project."""
    parser.add_argument("folder", metavar="DIR", help="project folder; it must be empty or not exist yet")


def run(arguments: argparse.Namespace) -> int:
    """Write a suite, a data module, a method, a test and small generated images.

    Raises:
        MtlbenchError: If the folder holds something or cannot be written.
    """
    folder = Path(arguments.folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise MtlbenchError(f"A project starts in an empty folder. {folder} is not empty. Choose another folder.")
    try:
        write(folder)
    except OSError as error:
        raise MtlbenchError(
            f"The folder of a project must be writable. {error.filename or folder}: {error.strerror}. Choose another."
        ) from error
    print(f"Wrote {folder}. Next:\n\n  cd {folder}\n  mtlbench bench photos\n\nREADME.md there says what to change.")
    return 0


def write(folder: Path) -> None:
    """Write the project's files and its images."""
    templates = files("mtlbench.cli") / "project"
    for template, target in FILES.items():
        text = (templates / f"{template}.template").read_text(encoding="utf-8")
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("@name@", folder.resolve().name), encoding="utf-8")
    _write_images(folder / "data" / "photos")


def _write_images(folder: Path) -> None:
    """Write ``images/*.png`` and ``labels.csv``; one label in twelve is left out, to show how that is written."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "split", "shape", "size"])
        for name, split, shape, size, pixels in _shapes():
            Image.fromarray(pixels).save(folder / "images" / name)
            table.writerow([name, split, shape, size])


def _shapes() -> Iterator[tuple[str, str, str, str, Any]]:
    """Yield name, split, shape, size and uint8 pixels (H, W, 3) of every image; the same on every call."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    for split, count in IMAGES.items():
        for index in range(count):
            shape, radius = SHAPES[index % len(SHAPES)], generator.uniform(4, 12)
            x, y = generator.uniform(radius, PIXELS - radius, size=2)
            across, down = columns - x, rows - y
            inside = {
                "circle": across**2 + down**2 <= radius**2,
                "square": np.maximum(abs(across), abs(down)) <= radius,
                "triangle": (down <= radius) & (2 * abs(across) <= down + radius),
            }[shape]
            paper, ink = generator.integers(140, 256, size=3), generator.integers(0, 110, size=3)
            noise = generator.integers(-12, 13, size=(PIXELS, PIXELS, 3))
            pixels = np.clip(np.where(inside[..., None], ink, paper) + noise, 0, 255).astype(np.uint8)
            unlabelled = split == "train" and index % 12 == 11
            yield f"{split}-{index:03d}.png", split, shape, "" if unlabelled else f"{radius / PIXELS:.4f}", pixels
