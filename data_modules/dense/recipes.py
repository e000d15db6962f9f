"""The augmentation and test view of each standard recipe, as functions of (sample, generator).

A recipe first says how a photograph becomes a picture of the run's size (`fit`), once and without chance, so that it
can be cached; then it draws a `Warp` and, perhaps, a change of colours for every training sample. Geometry reaches
every label by the label's own rule: class ids, edges and depth are taken from the nearest pixel, depth is divided by
the enlargement, normals turn and flip with the picture, and what comes from outside is ignored.

Sources: the public loaders of ASTMT (Maninis et al. 2019), Vandenhende et al. 2021, ATRC (Bruggemann et al. 2021),
InvPT (Ye and Xu 2022), MTAN (Liu et al. 2019) and Mod-Squad (Chen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mtlbench.data import Sample
from mtlbench.tasks import IGNORE, LabelOptions, Task

from .warp import BLACK, Colour, Warp

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean: becomes 0 when the network normalises, as padding after normalisation does in ATRC."""

LINEAR, CUBIC, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST


@dataclass(frozen=True)
class Recipe:
    """Base of the recipes. Fields are the recipe's own values; a suite may change them.

    Attributes:
        size: Height and width of training and test samples.
        flip: Probability of a mirrored training image.
        scale: Smallest and largest enlargement, or with ``stepped`` the choices.
        stepped: Whether ``scale`` lists choices.
        rotation: Largest turn, degrees, to either side.
        fill: Class id, saliency and edge of pixels from outside: 255 = ignore, or 0 = background as in the reference
            code of ASTMT and Vandenhende. Depth and normals are ignored there in any case.
        nearer: Whether an enlargement divides depth.
        whole_edges: Whether edges are shrunk to the stored size by `boundaries.shrink` instead of the nearest pixel.
    """

    size: tuple[int, int] = (512, 512)
    flip: float = 0.5
    scale: tuple[float, ...] = (1.0, 1.0)
    stepped: bool = False
    rotation: float = 0.0
    fill: int = IGNORE
    nearer: bool = True
    whole_edges: bool = False

    fit: ClassVar[str] = "stretch"
    """``"stretch"`` to the stored size, or ``"pad"``: keep the size, centred."""
    image_how: ClassVar[Image.Resampling] = CUBIC
    normals_how: ClassVar[Image.Resampling] = NEAREST
    outside: ClassVar[Colour] = BLACK

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width at which decoded samples are kept: that of the samples, unless crops need more."""
        return self.size

    def draw(self, sample: Sample, generator: np.random.Generator) -> Warp:
        """Returns the random geometry of one training sample."""
        raise NotImplementedError

    def augment(self, sample: Sample, generator: np.random.Generator, tasks: Mapping[str, Task], axes: str) -> Sample:
        """Returns a randomly changed training sample of ``size``.

        Args:
            sample: With ``frame``, the (top, left, height, width) of the photograph within the picture, and
                ``aspect``, its original height / width.
            generator: The only source of chance.
            tasks: How each label follows, see `mtlbench.tasks.Task.warp`.
            axes: Where channels 0 and 1 of normals point, key of `data_modules.dense.warp.AXES`.
        """
        return self.warped(sample, self.draw(sample, generator), tasks, axes)

    def view(self, sample: Sample) -> Sample:
        """Returns the sample in the form used for testing."""
        return sample

    def warped(self, sample: Sample, warp: Warp, tasks: Mapping[str, Task], axes: str) -> Sample:
        """Returns the sample with image and every label warped, each by its own rule."""
        options = LabelOptions(self.fill, self.nearer, axes, self.normals_how)

        def label(name: str, target: torch.Tensor) -> torch.Tensor:
            task = tasks[name]
            return torch.from_numpy(task.warp(target.numpy(), warp, options)) if task.dense else target

        targets = {name: label(name, target) for name, target in sample["targets"].items()}
        image = torch.from_numpy(warp.image(sample["image"].numpy(), self.outside, self.image_how))
        return {**sample, "image": image, "targets": targets}

    def draw_scale(self, generator: np.random.Generator) -> float:
        """Returns an enlargement."""
        if self.stepped:
            return float(self.scale[int(generator.integers(len(self.scale)))])
        return float(generator.uniform(self.scale[0], self.scale[1]))


@dataclass(frozen=True)
class AboutCentre(Recipe):
    """ASTMT and Vandenhende: flip, scaling and turn about the centre, the size kept; stretched, ratio not kept.

    The reference warps and then stretches; here the picture is stretched first and the warp made to match, so that the
    stretched picture can be cached. Normals are interpolated and set to length 1.
    """

    normals_how: ClassVar[Image.Resampling] = CUBIC

    def draw(self, sample: Sample, generator: np.random.Generator) -> Warp:  # noqa: D102
        flip, angle = bool(generator.random() < self.flip), generator.uniform(-self.rotation, self.rotation)
        height, width = self.size
        return Warp.about_centre(
            height, width, flip=flip, angle=angle, scale=self.draw_scale(generator), aspect=sample["aspect"]
        )


@dataclass(frozen=True)
class ScaledCrop(Recipe):
    """ATRC and InvPT: scaling, random crop, flip, colours; what is too small is padded, centred and ignored.

    Crops start at whole pixels of the photograph (the reference: of the enlarged one).

    Attributes:
        tries: Crops drawn until the largest class of ``semseg`` has less than ``share`` of its labelled pixels; without
            that label the first crop counts.
        share: See ``tries``.
        colours: Whether colours change at random, see `distort`.
    """

    scale: tuple[float, ...] = (0.5, 2.0)
    tries: int = 10
    share: float = 0.75
    colours: bool = True
    fit: ClassVar[str] = "pad"
    image_how: ClassVar[Image.Resampling] = LINEAR
    outside: ClassVar[Colour] = MEAN_COLOUR

    def augment(  # noqa: D102
        self, sample: Sample, generator: np.random.Generator, tasks: Mapping[str, Task], axes: str
    ) -> Sample:
        warp = self.draw(sample, generator)
        changed = self.warped(sample, warp, tasks, axes)
        if not self.colours:
            return changed
        image = distort(changed["image"].numpy(), generator)
        rows, columns = warp.within(sample["frame"])  # padding keeps its colour
        image[:, ~rows], image[:, :, ~columns] = _column(self.outside), _column(self.outside)
        return {**changed, "image": torch.from_numpy(image)}

    def draw(self, sample: Sample, generator: np.random.Generator) -> Warp:  # noqa: D102
        scale = self.draw_scale(generator)
        top, left, rows, columns = sample["frame"]
        (height, width), semseg = self.size, sample["targets"].get("semseg")
        # Room to move the crop in pixels of the photograph; none: padding on both sides, in pixels of the picture.
        down, across = round(rows * scale) - height, round(columns * scale) - width
        for _ in range(self.tries):
            y = int(generator.integers(int(down / scale) + 1)) if down > 0 else down // 2 / scale
            x = int(generator.integers(int(across / scale) + 1)) if across > 0 else across // 2 / scale
            corner = (_aligned(left + x, scale), _aligned(top + y, scale))
            if semseg is None or max(down, across) <= 0 or self._mixed(semseg.numpy(), corner, scale):
                break
        return Warp.window(height, width, *corner, scale=scale, flip=bool(generator.random() < self.flip))

    def _mixed(self, semseg: NDArray[np.int64], corner: tuple[float, float], scale: float) -> bool:
        (left, top), (height, width) = corner, self.size
        rows = slice(max(0, round(top)), round(top + height / scale))
        columns = slice(max(0, round(left)), round(left + width / scale))
        counts = np.bincount(semseg[rows, columns].ravel(), minlength=IGNORE + 1)[:IGNORE]
        return int((counts > 0).sum()) > 1 and counts.max() < self.share * counts.sum()


@dataclass(frozen=True)
class ZoomedCrop(Recipe):
    """MTAN's option: a crop of 1/s of either side, enlarged back, corners aligned; flip. The paper trains without."""

    scale: tuple[float, ...] = (1.0, 1.2, 1.5)
    stepped: bool = True
    image_how: ClassVar[Image.Resampling] = LINEAR
    normals_how: ClassVar[Image.Resampling] = LINEAR

    def draw(self, sample: Sample, generator: np.random.Generator) -> Warp:  # noqa: D102
        scale, (height, width) = self.draw_scale(generator), self.size
        rows, columns = int(height / scale), int(width / scale)
        top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
        flip = bool(generator.random() < self.flip)
        image = self._matrix(left, top, columns, rows, flip=flip, corners=True)
        return Warp(image, height, width, flip, 0.0, scale, self._matrix(left, top, columns, rows, flip=flip))

    def _matrix(self, left: int, top: int, columns: int, rows: int, *, flip: bool, corners: bool = False) -> Any:
        height, width = self.size
        if corners:  # the centres of the outermost pixels stay outermost
            a, e = (columns - 1) / max(1, width - 1), (rows - 1) / max(1, height - 1)
            c, f = left + (1 - a) / 2, top + (1 - e) / 2
        else:  # new pixel n is old pixel floor(n / s)
            a, e = columns / width, rows / height
            c, f = left - a / 2 + 1e-6, top - e / 2 + 1e-6
        return (-a, 0.0, c + a * width, 0.0, e, f) if flip else (a, 0.0, c, 0.0, e, f)


@dataclass(frozen=True)
class RandomCrop(Recipe):
    """Mod-Squad on Taskonomy: resized to 8/7 of the size, random crop, flip; the centre in tests.

    The reference does not negate the normals under a flip, which is a fault; here they are.
    """

    size: tuple[int, int] = (224, 224)
    image_how: ClassVar[Image.Resampling] = LINEAR

    @property
    def stored(self) -> tuple[int, int]:
        """256 for 224."""
        return round(self.size[0] * 8 / 7), round(self.size[1] * 8 / 7)

    def draw(self, sample: Sample, generator: np.random.Generator) -> Warp:  # noqa: D102
        room = [whole - part for whole, part in zip(self.stored, self.size, strict=True)]
        top, left = (int(generator.integers(n + 1)) for n in room)
        return Warp.window(*self.size, left, top, flip=bool(generator.random() < self.flip))

    def view(self, sample: Sample) -> Sample:  # noqa: D102
        (rows, columns), (height, width) = self.stored, self.size
        top, left = (rows - height) // 2, (columns - width) // 2

        def centre(values: torch.Tensor) -> torch.Tensor:
            if values.shape[-2:] != (rows, columns):
                return values  # no map
            return values[..., top : top + height, left : left + width]

        targets = {name: centre(target) for name, target in sample["targets"].items()}
        return {**sample, "image": centre(sample["image"]), "targets": targets}


def _aligned(corner: float, scale: float) -> float:
    """Returns a coordinate at which a whole pixel begins: of the old picture within it, of the new one before it."""
    return float(round(corner)) if corner >= 0 else round(corner * scale) / scale


def _column(colour: Colour) -> NDArray[np.uint8]:
    return np.array(colour, np.uint8)[:, None, None]


def distort(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the image with changed colours, each change with probability 0.5, on values 0..255.

    Brightness ±32, contrast 0.5..1.5 (before or after the others, evenly), saturation 0.5..1.5, hue ±18 of 180.

    Args:
        image: (3, H, W) RGB.
        generator: The only source of chance.
    """
    chosen = generator.random(4) < 0.5
    brightness, hue = generator.uniform(-32, 32), generator.uniform(-18, 18) / 180 * 256
    contrast, saturation = generator.uniform(0.5, 1.5, 2)
    early = generator.random() < 0.5
    levels = np.arange(256, dtype=np.float64)
    first = np.clip(levels + brightness, 0, 255).astype(np.uint8) if chosen[0] else levels.astype(np.uint8)
    scaled = np.clip(levels * contrast, 0, 255).astype(np.uint8)
    changed = (scaled[first] if chosen[1] and early else first).take(image)
    if chosen[2] or chosen[3]:
        changed = _in_hsv(changed, saturation if chosen[2] else 1.0, hue if chosen[3] else 0.0)
    return scaled.take(changed) if chosen[1] and not early else changed


def _in_hsv(image: NDArray[np.uint8], saturation: float, hue: float) -> NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("HSV")
    levels = np.arange(256)
    tables = [(levels + round(hue)) % 256, np.clip(levels * saturation, 0, 255).astype(int), levels]
    turned = picture.point([int(v) for table in tables for v in table]).convert("RGB")
    return np.ascontiguousarray(np.array(turned).transpose(2, 0, 1))
