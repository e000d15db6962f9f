"""Taskonomy with thirteen tasks, in omnidata's layout: many buildings, 16-bit maps, invalid pixels, soft classes."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from mtlbench.data.download import Download
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.tasks import IGNORE, Task
from mtlbench.tasks.dense import NO_NORMAL
from mtlbench.tasks.taskonomy import CosineNormals, SoftClassification, ValueMap

from .dense import DenseData
from .dense import decoding as read
from .dense.decoding import Array, Bytes, Size
from .dense.files import Files
from .dense.lists import read_text
from .dense.recipes import RandomCrop, Recipe

SUBSETS = ("debug", "tiny", "medium", "full", "fullplus")
EXCLUDED = frozenset({"mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough", "woodbine"})
"""Buildings without RGB or with wrong viewpoints, as omnidata leaves them out."""

CLASSES = ("class_object", "class_scene")
MASKS = ("mask_valid", "depth_zbuffer", "depth_euclidean")
"""Domains that mark valid pixels; the first one that exists is used."""

FLAGS = ("1", "1.0", "0", "0.0", "")
"""What a list of buildings may hold for a split."""

NO_DEPTH = 65535
SMALLEST = 100
"""Bytes below which a class file holds nothing."""

ADDRESS = "https://datasets.epfl.ch/taskonomy"
TERMS = (
    "Taskonomy: research only, non-commercial, no redistribution in whole or in part; the terms of Gibson and 2D-3D-S "
    "apply as well."
)

CURVATURE = (np.array((123.572, 120.1), np.float32), np.array((31.922, 21.658), np.float32))
"""Mean and deviation of the two principal curvatures, 8-bit."""


def _buildings(path: Path) -> dict[str, list[str]]:
    """Returns the buildings of each split, as a list says: columns id, train, val and test, in any order."""
    lines = read_text(path).splitlines()  # its lines end in CR alone
    delimiter = max(",;\t", key=lines[0].count) if lines else ","  # spreadsheets write others in some countries
    rows = csv.reader(lines, delimiter=delimiter)
    wanted = ("id", "train", "val", "test")
    found: dict[str, list[str]] = {split: [] for split in wanted[1:]}
    try:
        head = [word.strip().lower() for word in next(rows, [])]
        if not set(wanted) <= set(head):
            raise DataError(f"{path}: a list begins with id,train,val,test. Found {head}.")
        for words in rows:
            row = dict(zip(head, (word.strip() for word in words), strict=False))
            if not any(row.values()):
                continue
            odd = [row.get(split) for split in wanted[1:] if row.get(split) not in FLAGS]
            if odd or not row.get("id"):
                rule = "a split's column holds 1 or 0 (or nothing)" if odd else "every line names a building"
                fact = repr(odd[0]) if odd and odd[0] is not None else f"only {len(words)} columns" if odd else "no id"
                raise DataError(f"{path}, line {rows.line_num}: {rule}. Found {fact}. Correct the line.")
            for split in wanted[1:]:
                if row[split] in ("1", "1.0"):
                    found[split].append(row["id"])
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}. Correct the line.") from error
    return found


class TaskonomyFiles(Files):
    """``<root>/<domain>/taskonomy/<building>/``, ``<root>/<domain>/<building>/``, or one unpacked building alone.

    A sample is (building, point, view), its id ``<building>/point_<p>_view_<v>``; it counts if every map of `TASKS`
    that the copy has at all has it. Class files may be absent. Of the buildings of a list, those that are there count.

    Args:
        root: The folder with ``rgb/``.
        subset: One of `SUBSETS`: the list ``train_val_test_<subset>.csv``.
    """

    TITLE: ClassVar[str] = "Taskonomy"
    FOLDERS: ClassVar[tuple[str, ...]] = ("", "taskonomy", "omnidata_starter_dataset")
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]]
    REMEDY: ClassVar[str] = (
        "Get buildings from datasets.epfl.ch/taskonomy/<building>_<domain>.tar (`mtlbench data taskonomy --download` "
        "does, after you agreed to the terms: research only, no redistribution) or with omnitools.download, and the "
        "lists splits_taskonomy/train_val_test_<subset>.csv from EPFL-VILAB/omnidata. SAMPLE=1 renders a miniature."
    )

    def __init__(self, root: str | None, subset: str = "tiny"):
        super().__init__(root)
        self.subset = subset
        self._buildings: dict[str, list[str]] | None = None

    def recognise(self, folder: Path) -> bool:
        """Returns whether there are pictures."""
        return (folder / "rgb").is_dir()

    def sought(self) -> str:
        """Returns the folder of the pictures."""
        return "rgb/"

    def folder_of(self, domain: str, building: str) -> str:
        """Returns where the files of one domain and building lie."""
        if not building:
            return domain
        within = f"{domain}/taskonomy" if "taskonomy" in self.names(domain) else domain
        return f"{within}/{building}"

    def there(self) -> list[str]:
        """Returns the buildings that the copy has; ``[""]`` for one building without a name."""
        within = "rgb/taskonomy" if "taskonomy" in self.names("rgb") else "rgb"
        names = sorted(self.names(within))
        if any(name.startswith("point_") for name in names):
            return [""]
        return [name for name in names if name not in EXCLUDED and not name.startswith(".")]

    def listed(self) -> dict[str, list[str]]:
        """Returns the buildings of each split, as the list says.

        Raises:
            DataError: The list is absent or not of the known form.
        """
        if self._buildings is None:
            name = f"train_val_test_{self.subset}.csv"
            base = self.folder or Path(self.root or ".").expanduser()
            places = [base / "splits_taskonomy" / name, base / name]
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                raise DataError(f"No list of buildings: looked for {places[0]} or {places[1]}. {self.REMEDY}")
            self._buildings = _buildings(path)
        return self._buildings

    def read_ids(self, split: str) -> list[str]:
        """Returns the samples of the buildings of a split; of a single unnamed building every fifth point."""
        there = self.there()
        if there == [""]:
            turn = {"val": 3, "test": 4}
            ids = self._views("")
            return [
                image for image in ids if turn.get(split, -1) == (k := _point(image) % 5) or split == "train" and k < 3
            ]
        return [image for building in self.listed()[split] if building in set(there) for image in self._views(building)]

    def list_name(self, split: str) -> str:
        """Returns the list and the folder of its buildings."""
        return f"the split {split!r} of the list {self.subset!r}, for the buildings in {self.folder}/rgb,"

    def _views(self, building: str) -> list[str]:
        found: set[str] | None = None
        for domain in ("rgb", *(name for name in MAPS if self.present(name))):
            views = set(self.stems(self.folder_of(domain, building), f"_domain_{domain}.png"))
            found = views if found is None else found & views
        return [f"{building}/{view}" for view in sorted(found or (), key=_numbers)]

    def candidates(self, kind: str, image: str) -> list[str]:
        """Returns the one name that a file has; for the mask, one for each of `MASKS`."""
        building, _, view = image.rpartition("/")
        domains = {"image": ("rgb",), "mask": MASKS}.get(kind, (kind,))
        ending = "npy" if kind in CLASSES else "png"
        return [f"{self.folder_of(domain, building)}/{view}_domain_{domain}.{ending}" for domain in domains]

    def may_share_images(self) -> bool:
        """Returns whether the subset is ``debug``, whose official list has one building in all three splits."""
        return self.subset == "debug"

    def places(self, kind: str) -> list[str]:
        """Returns the folder of the domain."""
        return ["rgb" if kind == "image" else kind]

    def absent_files(self, kind: str, ids: Iterable[str]) -> Iterable[str]:  # type: ignore[override]
        """Returns nothing: a sample without all its maps is none, and class files may be absent."""
        return ()

    def about(self) -> list[str]:
        """Returns where the copy is, and how many of the listed buildings it has."""
        listed = {name for names in self.listed().values() for name in names} if self.there() != [""] else {""}
        return [*super().about(), f"{len(listed & set(self.there()))} of {len(listed)} listed buildings are there"]

    def facts(self, kind: str, image: str, *, dates: bool) -> tuple[str, int, int] | None:
        """Returns the name; sizes only where dates are asked for too: there are millions of files."""
        if dates:
            return super().facts(kind, image, dates=True)
        name = self.find(kind, image)
        return (name, 0, 0) if name else None


class Taskonomy(DenseData):
    """Taskonomy: indoor scans, thirteen tasks, targets as Mod-Squad trains them.

    Depth is ln(1 + v) / ln(65536) of the 16-bit value v = 512 per metre; edges, keypoints, reshading and segments are
    mapped to about -1..1; curvature is standardised. Pixels without depth are ignored in depth, normals, curvature,
    reshading, occlusion edges and 3-D keypoints. Classes are distributions: softmax of the stored logits for objects,
    the stored probabilities for scenes.

    Normals are stored (right, down, away): channel 2 is small where a surface faces the camera.

    Args:
        subset: ``debug``, ``tiny``, ``medium``, ``full`` or ``fullplus``: which buildings. The official list of
            ``debug`` has one building in all three splits: its scores show that code runs, and nothing else.
        **options: Of `DenseData`.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    FILES = TaskonomyFiles
    AXES: ClassVar[str] = "right-down"
    RECIPES: ClassVar[Mapping[str, Recipe]] = {"mod_squad": RandomCrop()}
    TASKS: ClassVar[Mapping[str, Task]] = {
        "class_object": SoftClassification("class_object", classes=1000),
        "class_scene": SoftClassification("class_scene", classes=365),
        "depth_euclidean": ValueMap("depth_euclidean"),
        "depth_zbuffer": ValueMap("depth_zbuffer"),
        "normal": CosineNormals("normal"),
        "principal_curvature": ValueMap("principal_curvature", outputs=2, power=2),
        "edge_occlusion": ValueMap("edge_occlusion"),
        "edge_texture": ValueMap("edge_texture"),
        "keypoints2d": ValueMap("keypoints2d"),
        "keypoints3d": ValueMap("keypoints3d"),
        "reshading": ValueMap("reshading"),
        "segment_unsup2d": ValueMap("segment_unsup2d"),
        "segment_unsup25d": ValueMap("segment_unsup25d"),
    }

    def __init__(self, root: str | None = None, *, subset: str = "tiny", **options: Any):
        if subset not in SUBSETS:
            raise SuiteError(unknown_name("subset", subset, SUBSETS) + " Change data.subset in the suite.")
        self.subset = subset
        super().__init__(root, **options)

    def open_files(self, root: str | None) -> TaskonomyFiles:
        """Returns the files of the subset."""
        return TaskonomyFiles(root, self.subset)

    def variant(self) -> dict[str, Any]:
        """Returns the subset."""
        return {"subset": self.subset}

    def downloads(self) -> list[Download]:
        """Returns the archives of the listed buildings, a domain each, with the sums that the server publishes.

        Raises:
            DataError: The list of buildings is absent.
        """
        files = self.open_files(self.root)
        domains = ("rgb", "mask_valid", *self.tasks)
        buildings = [name for names in files.listed().values() for name in names if name not in EXCLUDED]
        return [
            Download(
                f"{ADDRESS}/{building}_{domain}.tar",
                TERMS,
                f"{domain}/taskonomy/{building}",
                flat=True,
                sums=f"{ADDRESS}/md5sum.txt",
            )
            for building in dict.fromkeys(buildings)
            for domain in domains
        ]

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Renders a small copy of the set; see `data_modules.miniatures`."""
        from .miniatures import write_taskonomy

        return write_taskonomy(folder)

    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns the picture and the labels of ``tasks``, maps as floats with 255 = ignore; see `DenseData.decode`."""
        files = self.files
        pixels = read.photo(files.path("image", image))
        size = (pixels.shape[0], pixels.shape[1])
        mask = files.find("mask", image) if any(task in MASKED for task in tasks) else None
        invalid = _invalid(files.base() / mask, size) if mask else np.zeros(size, bool)
        labels: dict[str, Array] = {}
        for task in tasks:
            if task in CLASSES:
                labels |= _distribution(files, task, image, self.tasks[task].channels)
            else:
                found = MAPS[task](files.path(task, image), size)
                if task in MASKED:
                    found[invalid] = NO_NORMAL if task == "normal" else IGNORE
                labels[task] = found
        return pixels, labels


def depth(path: Path, size: Size) -> NDArray[np.float32]:
    """Returns ln(1 + v) / ln(65536), 255 where depth is missing: (H, W)."""
    stored = read.grey16(path, size)
    return np.where(stored == NO_DEPTH, np.float32(IGNORE), np.log1p(stored.astype(np.float32)) / np.log(65536.0))


def normal(path: Path, size: Size) -> Bytes:
    """Returns 8-bit codes, `NO_NORMAL` where there is none: (H, W, 3)."""
    stored = read.png(path, ("RGB",), size)
    read.check_unit(path, stored * np.float32(2 / 255) - 1)
    return stored


def curvature(path: Path, size: Size) -> NDArray[np.float16]:
    """Returns the two standardised curvatures: (H, W, 2)."""
    mean, deviation = CURVATURE
    return ((read.png(path, ("RGB",), size)[..., :2] - mean) / deviation).astype(np.float16)


def occlusion(path: Path, size: Size) -> NDArray[np.float16]:
    """Returns occlusion edges, 0.00625 of the range mapped to -1..1, not clipped, blurred (sigma 4): (H, W)."""
    mapped = read.grey16(path, size).astype(np.float32) * np.float32(2 / (0.00625 * 65536)) - 1
    return ndimage.gaussian_filter(mapped, 4).astype(np.float16)


def grey(share: float) -> Any:
    """Returns a reader of 16-bit maps: 0 to ``share`` of the range mapped to -1..1, clipped there."""

    def reader(path: Path, size: Size) -> NDArray[np.float16]:
        found = read.grey16(path, size).astype(np.float32) * np.float32(2 / (share * 65536)) - 1
        return np.minimum(found, 1).astype(np.float16)

    return reader


def shade(path: Path, size: Size) -> NDArray[np.float16]:
    """Returns an 8-bit map, or the first of three equal channels, mapped to -1..1: (H, W)."""
    stored = read.png(path, ("L", "P", "RGB"), size)
    return ((stored if stored.ndim == 2 else stored[..., 0]) * np.float32(2 / 255) - 1).astype(np.float16)


MAPS: dict[str, Any] = {
    "depth_euclidean": depth,
    "depth_zbuffer": depth,
    "normal": normal,
    "principal_curvature": curvature,
    "edge_occlusion": occlusion,
    "edge_texture": grey(0.08),
    "keypoints2d": grey(0.005),
    "keypoints3d": grey(1.0),
    "reshading": shade,
    "segment_unsup2d": shade,
    "segment_unsup25d": shade,
}
"""Dense domain -> reader(path, size)."""

MASKED = frozenset(MAPS) - {"edge_texture", "keypoints2d", "segment_unsup2d", "segment_unsup25d"}
"""Domains made from the scan: where it has a hole, they have no label."""

TaskonomyFiles.NEEDS = {name: (name,) for name in (*CLASSES, *MAPS)}


def _invalid(path: Path, size: Size) -> NDArray[np.bool_]:
    """Returns where the scan has a hole: (H, W)."""
    if "mask_valid" in path.name:
        return read.png(path, ("L", "1", "P"), size) == 0
    return read.grey16(path, size) == NO_DEPTH


def _distribution(files: Files, task: str, image: str, classes: int) -> dict[str, NDArray[np.float32]]:
    """Returns {task: (classes,)}, from logits or probabilities; nothing if the file is absent or holds nothing."""
    name = files.find(task, image)
    if name is None:
        return {}
    path = files.base() / name
    if read.reading(path, path.stat).st_size < SMALLEST:
        return {}
    values = np.squeeze(read.npy(path)).astype(np.float32)
    if values.shape != (classes,):
        raise read.fault(path, f"a class file holds {classes} values", f"the shape {values.shape}")
    read.check_values(path, "class values are finite", values, np.isfinite(values))
    likely = bool((values >= 0).all()) and 0.5 < values.sum() < 1.5
    return {task: values / values.sum() if likely else special.softmax(values)}


def _numbers(view: str) -> tuple[int, int]:
    parts = view.split("_")
    return (
        (int(parts[1]), int(parts[3])) if len(parts) >= 4 and parts[1].isdecimal() and parts[3].isdecimal() else (0, 0)
    )


def _point(image: str) -> int:
    return _numbers(image.rpartition("/")[2])[0]
