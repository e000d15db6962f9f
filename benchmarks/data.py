"""Prints samples per second of the data pipeline on one core: ``python -m benchmarks.data [size] [images] [seconds]``.

Each image has five label maps, read from the cache or from files. The reference is a plain pipeline in which Pillow
decodes the image and five PNG label maps, and torchvision crops, resizes and flips them. The second part measures
whether a training step waits for two workers.
"""

from __future__ import annotations

import os

# One core means one thread. This must be set before numpy loads its linear algebra.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from benchmarks.arguments import call  # noqa: E402
from mtlbench.data_modules.dense.recipes import ScaledCrop  # noqa: E402
from mtlbench.data_modules.nyud import SEMSEG_NAMES  # noqa: E402
from mtlbench.data_modules.pascal import Pascal  # noqa: E402
from mtlbench.data_modules.rendering import render  # noqa: E402
from mtlbench.tasks import Edges, HumanParts, Normals, Saliency, SemanticSegmentation  # noqa: E402

RECIPES = {
    "crop, flip": ScaledCrop(scale=(1.0, 2.0), colours=False),
    "invpt": ScaledCrop(),
    "vandenhende": Pascal.RECIPES["vandenhende"],
}
"""The first recipe has the same steps as the plain pipeline."""

LABELS = ("semseg", "parts", "saliency", "edges", "normals")


class Plain(Pascal):
    """PASCAL's five tasks from plain PNG files, so that both pipelines decode the same bytes."""

    TASKS = {
        "semseg": SemanticSegmentation("semseg", classes=len(SEMSEG_NAMES)),
        "parts": HumanParts("parts"),
        "saliency": Saliency("saliency"),
        "edges": Edges("edges"),
        "normals": Normals("normals"),
    }
    RECIPES = RECIPES
    folder: Path

    def decode(self, image: str, tasks: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        photo = np.array(Image.open(self.folder / f"{image}.jpg"))
        return photo, {name: np.array(Image.open(self.folder / f"{image}-{name}.png")) for name in LABELS}


class Ids:
    """A substitute for the files of a data set that holds only ids."""

    def __init__(self, ids: list[str]):
        self.all, self.folder = ids, None

    def ids(self, split: str) -> list[str]:
        return self.all

    def missing(self, *_: object) -> list[str]:
        return []

    def absent(self, task: str) -> list[str]:
        return []


def write(folder: Path, count: int, size: int) -> list[str]:
    for number in range(count):
        scene = render(0, [number], size, size)
        Image.fromarray(scene.image[0].transpose(1, 2, 0).copy()).save(folder / f"{number}.jpg", quality=95)
        for name in LABELS:
            label = getattr(scene, name)[0]
            if name == "normals":
                label = ((label.transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
            Image.fromarray(label).save(folder / f"{number}-{name}.png")
    return [str(number) for number in range(count)]


def plain(folder: Path, ids: list[str], size: int) -> Callable[[int], object]:
    """Returns a straightforward pipeline of plain files and torchvision transforms."""
    change = v2.Compose([v2.RandomResizedCrop(size, (0.25, 1.0), antialias=True), v2.RandomHorizontalFlip()])

    def sample(index: int) -> object:
        image = tv_tensors.Image(np.array(Image.open(folder / f"{ids[index]}.jpg")).transpose(2, 0, 1))
        masks = {n: np.array(Image.open(folder / f"{ids[index]}-{n}.png")) for n in LABELS}
        maps = {n: tv_tensors.Mask(m if m.ndim == 2 else m.transpose(2, 0, 1)) for n, m in masks.items()}
        image, maps = change(image, maps)
        targets = {name: maps[name].long() for name in ("semseg", "parts")}
        targets |= {name: maps[name].float()[None] for name in ("saliency", "edges")}
        targets["normals"] = torch.nn.functional.normalize(maps["normals"].float() * (2 / 255) - 1, dim=0)
        return image, targets

    return sample


def ours(folder: Path, ids: list[str], size: int, *, cached: bool, recipe: str) -> Plain:
    data = Plain(None, size=size, recipe=recipe, workers=2, batch_size=4, steps=10**6)
    data.folder, data.files = folder, Ids(ids)  # type: ignore[assignment]
    data._key = lambda split: f"{folder}{size}{recipe}"  # type: ignore[method-assign]
    data._samples["train"] = data.samples("train") if cached else data.originals("train")
    return data


def rate(sample: Callable[[int], object], count: int, seconds: float) -> float:
    """Returns samples per second, best of three."""
    best = 0.0
    for _ in range(3):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            sample(done % count)
            done += 1
        best = max(best, done / (time.perf_counter() - start))
    return best


def waiting(data: Plain, compute: float, steps: int = 30) -> float:
    """Returns the share of time that a step of ``compute`` seconds waits for the next batch."""
    batches = iter(data.train_dataloader())
    for _ in range(4):
        next(batches)
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        time.sleep(compute)  # a step on an accelerator leaves the cores alone
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
    return waited / (time.perf_counter() - start)


def main(size: int = 512, count: int = 24, seconds: float = 3.0) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["MTLBENCH_CACHE"] = place + "/cache"
        ids = write(folder, count, size)
        base = rate(plain(folder, ids, size), count, seconds)
        print(f"{size} x {size}, one image and five labels, one core")
        print(f"  {'plain: Pillow, torchvision':44} {base:7.1f} samples/s")
        for recipe in RECIPES:
            for cached in (False, True):
                data = ours(folder, ids, size, cached=cached, recipe=recipe)
                samples = data.samples("train")

                def augmented(index: int, data: Plain = data, samples: object = samples) -> object:
                    return data.augment(samples[index], np.random.default_rng(index))  # type: ignore[index]

                for what, found in (
                    ("read", rate(samples.__getitem__, count, seconds)),
                    ("read and augment", rate(augmented, count, seconds)),
                ):
                    name = f"{recipe}, {'cache' if cached else 'files'}: {what}"
                    print(f"  {name:44} {found:7.1f} samples/s, {found / base:5.2f} x")
        share = waiting(ours(folder, ids, size, cached=True, recipe="invpt"), 0.15)
        print(f"  waiting of a step of 0.15 s on 4 images, 2 workers: {share:.1%}")


if __name__ == "__main__":
    call(main, __doc__)
