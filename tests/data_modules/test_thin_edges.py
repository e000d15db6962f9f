"""Edges that are shrunk stay lines under the recipe that asks for it, and other recipes are as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mtlbench.data_modules.dense.boundaries import shrink, thin
from mtlbench.data_modules.pascal import Pascal

EIGHT = np.ones((3, 3))


def pieces(mask: np.ndarray) -> int:
    return int(ndimage.label(mask == 1, EIGHT)[1])


def circle(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return thin(np.abs(np.hypot(x, y) - size * 0.37) < 1).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (50, 64), (37, 41)])
def test_a_line_stays_one_thin_line(size: tuple[int, int]) -> None:
    edges = circle(128)
    found = shrink(edges, size)
    assert pieces(edges) == pieces(found) == 1
    assert found.shape == size and np.array_equal(thin(found == 1), found == 1)


def test_every_edge_pixel_is_near_one_of_the_result_and_ignore_is_kept() -> None:
    edges = circle(128)
    edges[:10] = 255
    found = shrink(edges, (64, 64))
    far = ndimage.distance_transform_edt(found != 1)
    y, x = np.nonzero(edges == 1)
    assert far[y // 2, x // 2].max() <= np.sqrt(2) and (found[:5] == 255).all() and (found[5:] != 255).all()


def test_only_the_recipe_that_asks_for_it_changes(tmp_path: Path) -> None:
    root = str(Pascal.miniature(tmp_path))
    plain, lines = (Pascal(root, size=32, recipe=name) for name in ("vandenhende", "vandenhende_lines"))
    assert lines.recipe == replace(plain.recipe, whole_edges=True) and lines._key("val") != plain._key("val")
    one, other = plain.originals("val")[0]["targets"], lines.originals("val")[0]["targets"]
    assert one.keys() == other.keys() and not one["edges"].equal(other["edges"])
    assert all(one[name].equal(other[name]) for name in one if name != "edges")
