"""Recipes: sizes and ranges as published, and the right rule for every label under every change of geometry."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from mtlbench.data_modules.cityscapes import Cityscapes
from mtlbench.data_modules.dense.recipes import MEAN_COLOUR, AboutCentre, RandomCrop, ScaledCrop, ZoomedCrop, distort
from mtlbench.data_modules.dense.warp import Warp
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.nyuv2 import NYUv2
from mtlbench.data_modules.pascal import Pascal
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.tasks import Depth, Edges, Normals, SemanticSegmentation
from mtlbench.tasks.taskonomy import InverseDepth, SoftClassification, ValueMap

SIZE = (40, 56)
TASKS = {
    "semseg": SemanticSegmentation("semseg", classes=5),
    "depth": Depth("depth"),
    "normals": Normals("normals"),
    "edges": Edges("edges"),
    "disparity": InverseDepth("disparity"),
    "where": ValueMap("where", outputs=2),
    "kind": SoftClassification("kind", classes=3),
}


def sample(
    height: int = SIZE[0], width: int = SIZE[1], frame: tuple[int, int, int, int] | None = None
) -> dict[str, Any]:
    """Returns a sample whose label ``where`` holds the row and the column of each pixel."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3, height, width)).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    targets = {
        "semseg": generator.integers(0, 5, (height, width)),
        "depth": generator.uniform(1, 9, (1, height, width)).astype(np.float32),
        "normals": vectors / np.linalg.norm(vectors, axis=0),
        "edges": generator.integers(0, 2, (1, height, width)).astype(np.float32),
        "disparity": generator.uniform(1, 9, (1, height, width)).astype(np.float32),
        "where": np.stack([rows, columns]),
        "kind": np.array([0.2, 0.3, 0.5], np.float32),
    }
    targets["depth"][:, :3], targets["normals"][:, :, :4] = 255, 255
    image = generator.integers(0, 256, (3, height, width), dtype=np.uint8)
    return {
        "image": torch.from_numpy(image),
        "targets": {n: torch.from_numpy(t) for n, t in targets.items()},
        "id": "a",
        "frame": frame or (0, 0, height, width),
        "aspect": height / width,
    }


def changed(recipe: Any, given: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return recipe.augment(given, np.random.default_rng(seed), TASKS, "left-up")


RECIPES = [
    AboutCentre(SIZE, scale=(0.75, 1.25), rotation=20.0),
    AboutCentre(SIZE, scale=(1.0, 1.2, 1.5), stepped=True),
    ScaledCrop(SIZE),
    ZoomedCrop(SIZE),
    RandomCrop((35, 49)),
]


def test_the_table_of_recipes() -> None:
    def facts(module: Any, name: str) -> tuple[Any, ...]:
        p = module.RECIPES[name]
        return p.size, p.fit, p.flip, p.scale, p.stepped, p.rotation, getattr(p, "colours", False), p.nearer

    small_turns = (0.5, (0.75, 1.25), False, 20.0, False)
    crops = (0.5, (0.5, 2.0), False, 0.0, True, True)
    assert facts(Pascal, "vandenhende") == ((512, 512), "stretch", *small_turns, True)
    assert facts(Pascal, "invpt") == ((512, 512), "pad", *crops)
    assert facts(Nyud, "vandenhende") == ((480, 640), "stretch", 0.5, (1.0, 1.2, 1.5), True, 0.0, False, True)
    assert facts(Nyud, "astmt") == ((512, 512), "stretch", *small_turns, False)
    assert facts(Nyud, "invpt") == ((448, 576), "pad", *crops)
    assert facts(Nyud, "atrc") == ((425, 560), "pad", *crops)
    assert facts(NYUv2, "mtan")[:4] == ((288, 384), "stretch", 0.0, (1.0,))
    assert facts(NYUv2, "mtan_augmented")[:5] == ((288, 384), "stretch", 0.5, (1.0, 1.2, 1.5), True)
    assert facts(Cityscapes, "mtan")[:4] == ((128, 256), "stretch", 0.0, (1.0,))
    assert facts(Taskonomy, "mod_squad")[:4] == ((224, 224), "stretch", 0.5, (1.0, 1.0))
    assert Taskonomy.RECIPES["mod_squad"].stored == (256, 256)
    assert (ScaledCrop().tries, ScaledCrop().share) == (10, 0.75)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: type(p).__name__)
def test_every_label_comes_from_the_pixel_that_the_geometry_says(recipe: Any) -> None:
    """``where`` tells the source of each new pixel; every other label must have the value that stands there."""
    given = sample(*recipe.stored)
    kinds = set()
    for seed in range(12):
        new = changed(recipe, given, seed)["targets"]
        assert torch.equal(new["kind"], given["targets"]["kind"])
        assert {t.shape[-2:] for n, t in new.items() if n != "kind"} == {recipe.size}
        inside = new["where"][0] != 255
        row, column = (new["where"][i][inside].long() for i in (0, 1))
        old = given["targets"]
        assert torch.equal(new["semseg"][inside], old["semseg"][row, column])
        assert torch.equal(new["edges"][0][inside], old["edges"][0, row, column])
        assert all((new[name][..., ~inside] == 255).all() for name in ("semseg", "edges", "depth", "normals"))
        warp = recipe.draw(given, np.random.default_rng(seed))
        for name, factor in (("depth", 1 / warp.scale), ("disparity", warp.scale)):
            found, expected = new[name][0][inside], old[name][0, row, column]
            expected = torch.where(expected == 255, expected, expected * factor)
            assert torch.allclose(found, expected)
        kinds.add((warp.flip, round(warp.scale, 2)))
    assert {flip for flip, _ in kinds} == {True, False}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: type(p).__name__)
def test_the_picture_moves_with_its_labels(recipe: Any) -> None:
    """A picture of its own columns and rows must agree with the label that holds them."""
    height, width = recipe.stored
    given = sample(height, width)
    rows, columns = np.mgrid[:height, :width]
    given["image"] = torch.from_numpy(np.stack([2 * rows, 2 * columns, 0 * rows]).astype(np.uint8))
    recipe = type(recipe)(**{**recipe.__dict__, **({"colours": False} if isinstance(recipe, ScaledCrop) else {})})
    for seed in range(6):
        new = changed(recipe, given, seed)
        where, image = new["targets"]["where"], new["image"].float() / 2
        inside = F.max_pool2d((where[:1] == 255).float()[None], 5, 1, 2)[0, 0] == 0
        inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
        assert (image[:2] - where)[:, inside].abs().max() <= 1.01
        assert (image[:2] - where)[:, inside].mean().abs() < 0.4, "Pillow rounds down: half a grey level"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: type(p).__name__)
def test_normals_stay_unit_vectors_and_flip(recipe: Any) -> None:
    given = sample(*recipe.stored)
    given["targets"]["normals"] = torch.tensor([0.6, 0.0, 0.8])[:, None, None].expand(3, *recipe.stored).contiguous()
    for seed in range(8):
        normals, warp = (
            changed(recipe, given, seed)["targets"]["normals"],
            recipe.draw(given, np.random.default_rng(seed)),
        )
        valid = normals[0] != 255
        turn = np.radians(warp.angle)
        side = -0.6 if warp.flip else 0.6
        expected = torch.tensor([side * np.cos(turn), -side * np.sin(turn), 0.8], dtype=torch.float32)
        assert valid.any() and torch.allclose(normals[:, valid], expected[:, None], atol=2e-3)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: type(p).__name__)
def test_augmentation_is_a_function_of_sample_and_generator(recipe: Any) -> None:
    given = sample(*recipe.stored)
    before = {name: target.clone() for name, target in given["targets"].items()} | {"image": given["image"].clone()}
    one, two, other = changed(recipe, given, 3), changed(recipe, given, 3), changed(recipe, given, 4)
    assert torch.equal(one["image"], two["image"]) and not torch.equal(one["image"], other["image"])
    assert all(torch.equal(one["targets"][n], two["targets"][n]) for n in one["targets"])
    assert all(torch.equal(before[n], ({**given["targets"], "image": given["image"]})[n]) for n in before), (
        "no change in place"
    )


def enlarged(tensor: torch.Tensor, window: tuple[slice, slice], flip: bool, **how: Any) -> torch.Tensor:
    """Returns what MTAN does with a map (..., H, W)."""
    part = tensor[(..., *window)].float()
    large = F.interpolate(part.reshape(1, -1, *part.shape[-2:]), SIZE, **how)[0]
    return large.flip(-1) if flip else large


def test_mtan_equals_interpolation_with_aligned_corners() -> None:
    given, recipe = sample(), ZoomedCrop(SIZE)
    seen = set()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        scale = (1.0, 1.2, 1.5)[int(generator.integers(3))]
        height, width = int(SIZE[0] / scale), int(SIZE[1] / scale)
        top, left = (int(generator.integers(n + 1)) for n in (SIZE[0] - height, SIZE[1] - width))
        flip = bool(generator.random() < 0.5)
        seen.add((scale, flip))
        new, window = changed(recipe, given, seed), (slice(top, top + height), slice(left, left + width))
        wanted = enlarged(given["image"], window, flip, mode="bilinear", align_corners=True)
        assert (new["image"].float() - wanted).abs().max() < 1.01, "Pillow rounds down"
        semseg = enlarged(given["targets"]["semseg"], window, flip, mode="nearest")[0]
        assert torch.equal(new["targets"]["semseg"].float(), semseg)
    assert len(seen) >= 5


def test_a_scaled_crop_is_a_crop_of_the_scaled_photograph() -> None:
    recipe = ScaledCrop(SIZE, flip=0.0, colours=False)
    frame = (5, 8, 30, 40)
    large = small = 0
    for seed in range(30):
        where = changed(recipe, sample(frame=frame), seed)["targets"]["where"].numpy()
        scale = recipe.draw_scale(np.random.default_rng(seed))
        x = np.unique(np.diff(where[1][where[1] != 255].reshape(-1, 1), axis=0))
        assert x.min() >= -SIZE[1]
        warp = recipe.draw(sample(frame=frame), np.random.default_rng(seed))
        assert warp.scale == scale
        rows, columns = warp.within(frame)
        if round(30 * scale) <= 40:  # lower than the picture: all of it shows, in the middle
            shown = np.flatnonzero(rows)
            assert abs((shown[0]) - (39 - shown[-1])) <= 2 and abs(len(shown) - 30 * scale) <= 1
            small += 1
        else:
            assert rows.all()
            large += 1
        assert columns.any()
    assert small and large


@pytest.mark.parametrize("frame", [(0, 0, 40, 56), (5, 8, 30, 40), (0, 9, 40, 30)])
def test_enlarging_without_a_turn_is_quick_and_the_same(frame: tuple[int, int, int, int]) -> None:
    """The quick way and Pillow's affine map must agree but for rounding, for every crop that is drawn."""
    generator = np.random.default_rng(1)
    image = ndimage.gaussian_filter(generator.integers(0, 256, (3, *SIZE)).astype(float), (0, 2, 2))
    smooth = ((image - image.min()) * (255 / np.ptp(image))).astype(np.uint8)
    quick_ones = 0
    for seed in range(40):
        warp = ScaledCrop(SIZE).draw(sample(frame=frame), np.random.default_rng(seed))
        quick_ones += warp._axes(*SIZE) is not None
        quick = warp.image(smooth, MEAN_COLOUR, Image.Resampling.BILINEAR).astype(int)
        picture = Image.fromarray(smooth.transpose(1, 2, 0).copy())
        affine = (SIZE[1], SIZE[0]), Image.Transform.AFFINE, warp.matrix, Image.Resampling.BILINEAR
        slow = np.array(picture.transform(*affine, fillcolor=MEAN_COLOUR)).transpose(2, 0, 1)
        shown = (slow != np.array(MEAN_COLOUR)[:, None, None]).any(0)
        inside = ndimage.binary_erosion(
            shown, np.ones((3, 3))
        )  # the border of a crop is interpolated as that of a photo
        assert inside.any() and np.abs(quick - slow)[:, inside].max() <= 2
    assert quick_ones >= 38


def test_a_crop_of_one_class_is_drawn_again() -> None:
    given = sample(80, 112)
    semseg = np.zeros((80, 112), np.int64)
    semseg[:, 60:] = np.random.default_rng(0).integers(1, 5, (80, 52))
    given["targets"]["semseg"] = torch.from_numpy(semseg)
    strict, loose = (ScaledCrop((30, 30), scale=(1.0, 1.0), tries=n, colours=False) for n in (10, 1))

    def mixed(recipe: ScaledCrop) -> float:
        found = [changed(recipe, given, seed)["targets"]["semseg"].flatten() for seed in range(60)]
        return float(np.mean([np.bincount(f.numpy(), minlength=5).max() < 0.75 * 900 for f in found]))

    assert mixed(loose) < 0.75 and mixed(strict) > 0.97
    del given["targets"]["semseg"]
    assert "semseg" not in changed(strict, given)["targets"], "without the label the first crop counts"


def test_padding_has_the_mean_colour_and_no_label() -> None:
    given = sample(frame=(0, 0, *SIZE))
    for seed in range(10):
        new = changed(ScaledCrop(SIZE, scale=(0.5, 0.5)), given, seed)
        outside = new["targets"]["where"][0] == 255
        assert outside.float().mean() > 0.7
        assert (new["image"][:, outside] == torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None]).all(), (
            "colours spare it"
        )
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.abs((np.array(MEAN_COLOUR) / 255 - mean) / deviation).max() < 0.01


def test_a_fill_of_zero_is_background_but_never_depth_or_normals() -> None:
    new = changed(AboutCentre(SIZE, scale=(0.75, 0.75), fill=0), sample())["targets"]
    corner = {name: float(new[name].reshape(-1, *SIZE)[0, 0, 0]) for name in new if name != "kind"}
    assert corner == {"semseg": 0, "edges": 0, "depth": 255, "normals": 255, "disparity": 255, "where": 255}


def test_astmt_leaves_depth_alone() -> None:
    new = changed(AboutCentre(SIZE, scale=(2.0, 2.0), flip=0.0, nearer=False), sample())["targets"]["depth"]
    assert set(new.flatten().tolist()) <= set(sample()["targets"]["depth"].flatten().tolist())


def test_the_test_view_of_taskonomy_is_the_centre() -> None:
    recipe = RandomCrop((35, 49))
    given = sample(*recipe.stored)
    seen = recipe.view(given)
    assert torch.equal(seen["image"], given["image"][:, 2:37, 3:52]) and recipe.stored == (40, 56)
    assert torch.equal(seen["targets"]["depth"], given["targets"]["depth"][:, 2:37, 3:52])
    corners = {tuple(changed(recipe, given, s)["targets"]["where"][:, 0, :].amin(1).tolist()) for s in range(200)}
    assert {r for r, _ in corners} == set(range(6)) and {c for _, c in corners} == set(range(8)), "all positions occur"


# ---- colours --------------------------------------------------------------------------------------------------------


class Chosen:
    """A generator that gives prepared numbers."""

    def __init__(self, chances: list[float], brightness: float, hue: float, factors: tuple[float, float], late: float):
        self.chances, self.uniforms, self.late = np.array(chances), [brightness, hue, np.array(factors)], late

    def random(self, count: int | None = None) -> Any:
        return self.chances if count else self.late

    def uniform(self, *_: Any) -> Any:
        return self.uniforms.pop(0)


def test_each_change_of_colour_by_hand() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 9), dtype=np.uint8)
    off, on = 0.9, 0.1
    same = distort(image, Chosen([off] * 4, 20, 9, (1.2, 1.4), 0))
    assert np.array_equal(same, image)
    brighter = distort(image, Chosen([on, off, off, off], 20, 9, (1.2, 1.4), 0))
    assert np.array_equal(brighter, np.clip(image.astype(int) + 20, 0, 255))
    for late in (0.1, 0.9):
        steeper = distort(image, Chosen([off, on, off, off], 20, 9, (1.2, 1.4), late))
        assert np.array_equal(steeper, np.clip(image * 1.2, 0, 255).astype(np.uint8))
    turned = distort(image, Chosen([off, off, off, on], 20, 18, (1.2, 1.4), 0))
    fuller = distort(image, Chosen([off, off, on, off], 20, 18, (1.2, 0.5), 0))
    for pixel in np.ndindex(8, 9):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[(slice(None), *pixel)] / 255))
        for found, expected in (
            (turned, colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value)),
            (fuller, colorsys.hsv_to_rgb(hue, saturation * 0.5, value)),
        ):
            assert np.abs(found[(slice(None), *pixel)] / 255 - expected).max() < 0.03


def test_colours_change_half_of_the_time() -> None:
    image = np.tile(np.array([90, 120, 200], np.uint8)[:, None, None], (1, 2, 2))
    same = np.mean([np.array_equal(distort(image, np.random.default_rng(s)), image) for s in range(800)])
    assert abs(same - 1 / 16) < 0.04


def test_a_warp_of_whole_pixels_copies() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 10, 12), dtype=np.uint8)
    assert np.array_equal(Warp.window(6, 7, 3, 2).image(image), image[:, 2:8, 3:10])
    assert np.array_equal(Warp.window(6, 7, 3, 2, flip=True).image(image), image[:, 2:8, 3:10][:, :, ::-1])
    shifted = Warp.window(10, 12, -2, -1).image(image, (1, 2, 3))
    assert np.array_equal(shifted[:, 1:, 2:], image[:, :-1, :-2]) and (shifted[:, 0] == [[1], [2], [3]]).all()
