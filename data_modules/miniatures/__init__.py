"""Small rendered data sets on disk, in the true layouts of the real ones: what ``SAMPLE=1`` writes.

They exercise every reader and every label rule without a download. Their scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .cityscapes import write_cityscapes
from .glue import write_glue
from .molecules import write_molecules
from .nyud import write_nyud
from .nyuv2 import write_nyuv2
from .pascal import write_pascal
from .taskonomy import write_taskonomy
from .texts import write_texts
from .writing import MARK, palette

__all__ = [
    "MARK", "MINIATURES", "palette", "write_cityscapes", "write_glue", "write_molecules", "write_nyud", "write_nyuv2",
    "write_pascal", "write_taskonomy", "write_texts",
]  # fmt: skip

MINIATURES: dict[str, Callable[..., Path]] = {
    "pascal": write_pascal, "nyud": write_nyud, "nyuv2": write_nyuv2, "cityscapes": write_cityscapes,
    "taskonomy": write_taskonomy, "text_sets": write_texts, "molecules": write_molecules, "glue": write_glue,
}  # fmt: skip
"""Data module -> writer of its miniature: ``writer(folder) -> root``."""
