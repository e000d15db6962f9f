"""Pictures of labels and predictions."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mtlbench import visualise

ARRAYS = {
    "semantic_segmentation": np.array([[0, 1], [2, 255]], np.uint8),
    "human_parts": np.array([[0, 1], [2, 255]], np.uint8),
    "saliency": np.array([[[0.0, 0.5], [1.0, 255.0]]]),
    "edges": np.array([[[0.0, 0.5], [1.0, np.nan]]]),
    "depth": np.array([[[1.0, 2.0], [3.0, 255.0]]]),
    "inverse_depth": np.array([[[1.0, 2.0], [3.0, 255.0]]]),
    "value_map": np.array([[[1.0, 2.0], [3.0, 255.0]], [[0.0, 1.0], [0.5, 255.0]]]),
    "normals": np.where(np.eye(2) == 1, np.array([0.0, 0.0, 2.0])[:, None, None], 255.0),
}


@pytest.mark.parametrize("kind", visualise.DENSE)
def test_every_dense_kind_has_a_picture(kind):
    picture = visualise.draw(kind, ARRAYS[kind], ["a", "b", "c"])
    assert picture.shape == (2, 2, 3) and picture.dtype == np.uint8


def test_unlabelled_pixels_are_hatched_and_labelled_ones_are_not():
    grey = {(205, 205, 205), (165, 165, 165)}
    for kind in ("semantic_segmentation", "saliency", "edges", "depth", "inverse_depth", "value_map"):
        picture = visualise.draw(kind, ARRAYS[kind])
        assert tuple(picture[1, 1]) in grey
        assert tuple(picture[0, 0]) not in grey


def test_classes_have_the_colours_of_the_palette_whatever_appears():
    colours = visualise.palette(40)
    assert len({tuple(c) for c in colours}) == 40
    picture = visualise.draw("semantic_segmentation", np.array([[3, 39]]), [str(i) for i in range(40)])
    assert (picture[0] == colours[[3, 39]]).all()
    assert (visualise.palette(5) == colours[:5]).all()


def test_normals_are_normalised_first():
    facing = visualise.draw("normals", ARRAYS["normals"])[0, 0]
    assert tuple(facing) == (128, 128, 255)


def test_depth_on_the_scale_of_the_truth():
    limits = visualise.depth_limits(np.array([[1.0, 3.0, 255.0]]))
    assert limits == pytest.approx((1.02, 2.98))
    near, far = visualise.draw("depth", np.array([[0.5, 9.0]]), limits=limits)[0]
    assert tuple(near) == (0, 0, 4) and tuple(far) == (252, 255, 164)
    assert visualise.depth_limits(np.full((1, 2, 2), 255.0)) == (0.0, 1.0)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="Did you mean 'depth'"):
        visualise.draw("dept", np.zeros((2, 2)))


def test_captions():
    assert visualise.caption("classification", np.int64(1), ["cat", "dog"]) == "dog"
    assert visualise.caption("classification", 7, ["cat"]) == "7"
    assert visualise.caption("classification", -1, ["cat"]) == "–"
    assert visualise.caption("regression", np.array([1.23456])) == "1.23"
    assert visualise.caption("regression", float("nan")) == "–"


def test_montage_legend_and_png():
    tile = np.full((10, 20, 3), (9, 99, 199), np.uint8)
    sheet = visualise.montage([[tile, tile], [tile]], heads=["image", "truth"], names=["semseg", "depth"])
    assert (sheet == tile[0, 0]).all(-1).sum() == 3 * 200
    legend = visualise.legend(["sky", "road"])
    assert legend.shape[0] == 36 and (legend[9, 9] == visualise.palette(2)[0]).all()
    small = Image.open(io.BytesIO(visualise.png(sheet, longest=16)))
    assert max(small.size) == 16
