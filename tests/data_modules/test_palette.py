"""Typical colours: they tell classes apart and change nothing but colours."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench.data_modules.rendering import SEMSEG_CLASSES, Rendered, render

N, SIZE = 40, 64


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render(0, range(N), SIZE, SIZE)


def test_typical_colours_change_colours_only(rendered: Rendered) -> None:
    typical = render(0, range(N), SIZE, SIZE, 1.0)
    for name in ("semseg", "parts", "depth", "normals", "edges", "instance"):
        assert np.array_equal(getattr(typical, name), getattr(rendered, name)), name
    assert not np.array_equal(typical.image, rendered.image)


def test_typical_colours_tell_classes_apart(rendered: Rendered) -> None:
    tree, box = (SEMSEG_CLASSES.index(name) for name in ("tree", "box"))

    def green(images: Rendered, label: int) -> float:
        colours = images.image.transpose(0, 2, 3, 1)[images.semseg == label].astype(float)
        return float((colours[:, 1] - colours[:, 2]).mean())  # green over blue

    typical = render(0, range(N), SIZE, SIZE, 1.0)
    assert green(typical, tree) > 20 > 0 > green(typical, box)
    assert abs(green(rendered, tree) - green(rendered, box)) < 0.5 * (green(typical, tree) - green(typical, box))
