"""Molecules as graphs: features of atoms and bonds, and positions, joined in a few arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlbench.errors import DataError, shortened

from .smiles import AROMATIC, DOUBLE, HEAVY, SINGLE, TRIPLE, Molecule, read

ATOM_FEATURES, BOND_FEATURES = 11, 4
"""Features of an atom: which of H, C, N, O and F; atomic number; aromatic; sp, sp2, sp3; bound hydrogens. Of a bond:
which of single, double, triple and aromatic."""

_LONGEST = 2.2
"""Most Å between bound atoms. The longest bond in QM9 has 2.14 Å; atoms with a common neighbour are mostly farther."""

_KINDS = ["H", *HEAVY]


@dataclass(frozen=True)
class Structure:
    """One molecule with all its hydrogens, heavy atoms first.

    Attributes:
        atoms: uint8 (n, 11), `ATOM_FEATURES`.
        bonds: uint8 (b, 3): two atoms, and the order of their bond.
        positions: float32 (n, 3), in Å; NaN if unknown.
    """

    atoms: np.ndarray
    bonds: np.ndarray
    positions: np.ndarray

    def graph(self, *, hydrogens: bool, distances: bool) -> dict[str, Tensor]:
        """Returns the inputs of a network; see `mtlbench.tasks.inputs`.

        Args:
            hydrogens: Whether hydrogens are nodes.
            distances: Whether any two atoms are linked and the last feature of an edge is their distance in Å; else
                only bound atoms are linked.
        """
        count = len(self.atoms) if hydrogens else int((self.atoms[:, 0] == 0).sum())
        bonds = self.bonds[(self.bonds[:, :2] < count).all(1)]
        i, j, order = bonds.T.astype(np.int64)
        edges = np.zeros((count, count, BOND_FEATURES + distances), dtype=np.float32)
        edges[i, j, order - 1] = edges[j, i, order - 1] = 1
        if distances:
            places = self.positions[:count]
            edges[:, :, -1] = np.sqrt(((places[:, None] - places[None]) ** 2).sum(2))
        linked = ~np.eye(count, dtype=bool) if distances else edges.any(2)
        return {
            "nodes": torch.from_numpy(self.atoms[:count].astype(np.float32)),
            "edges": torch.from_numpy(edges),
            "linked": torch.from_numpy(linked),
        }


def structure(smiles: str, elements: Sequence[str] | None = None, positions: np.ndarray | None = None) -> Structure:
    """Returns the structure of a SMILES, with positions if they are given.

    Args:
        smiles: The molecule.
        elements: Symbols of all atoms. None if there are no positions.
        positions: (n, 3), in Å.

    Raises:
        DataError: The SMILES is wrong, or the positions are those of another molecule.
    """
    molecule = read(smiles)
    count = len(molecule.atoms)
    bound = [atom for atom, each in enumerate(molecule.atoms) for _ in range(each.hydrogens or 0)]
    places = np.full((count + len(bound), 3), np.nan, dtype=np.float32)
    if positions is not None:
        bound, order = _placed(smiles, molecule, list(elements or ()), np.asarray(positions, dtype=np.float64))
        places = np.asarray(positions, dtype=np.float32)[order]
    if count + len(bound) > 255:
        raise DataError(f"A molecule has at most 255 atoms. {shortened(smiles)} has {count + len(bound)}.")
    own = [(i, j, order) for (i, j), order in molecule.bonds.items()]
    bonds = [*own, *((atom, count + number, SINGLE) for number, atom in enumerate(bound))]
    return Structure(_features(molecule, len(bound)), np.array(bonds, dtype=np.uint8).reshape(-1, 3), places)


def _placed(smiles: str, molecule: Molecule, elements: list[str], positions: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns the heavy atom of every hydrogen, and where the atoms are: heavy ones in the SMILES' order, hydrogens."""
    if positions.shape != (len(elements), 3) or not np.isfinite(positions).all():
        raise _misfit(smiles, f"{len(elements)} elements and positions {positions.shape}")
    heavy = [number for number, symbol in enumerate(elements) if symbol != "H"]
    light = [number for number, symbol in enumerate(elements) if symbol == "H"]
    symbols = [elements[number] for number in heavy]
    if sorted(symbols) != sorted(atom.symbol for atom in molecule.atoms):
        raise _misfit(smiles, f"atoms {''.join(symbols)}")
    gaps = np.linalg.norm(positions[:, None] - positions[None, heavy], axis=2)
    owner = gaps[light].argmin(1).tolist()
    kinds = [(symbol, owner.count(number)) for number, symbol in enumerate(symbols)]
    order = _assigned(molecule, kinds, gaps[heavy])
    if order is None:
        raise _misfit(smiles, "other bonds, or hydrogens at other atoms")
    return [order.index(each) for each in owner], [*(heavy[each] for each in order), *light]


def _assigned(molecule: Molecule, kinds: list[tuple[str, int]], gaps: np.ndarray) -> list[int] | None:
    """Returns which heavy atom of the positions each atom of the SMILES is; None if bound atoms cannot all be close.

    Args:
        molecule: The molecule.
        kinds: Symbol and hydrogens of each heavy atom of the positions.
        gaps: Distances between these, in Å.
    """
    near = [[other for other, _ in molecule.neighbours(number) if other < number] for number in range(len(kinds))]
    chosen: list[int] = []

    def place(number: int) -> bool:
        if number == len(kinds):
            return True
        atom = molecule.atoms[number]
        for option in sorted(range(len(kinds)), key=lambda option: option != number):  # Their own order first.
            fits = option not in chosen and kinds[option] == (atom.symbol, atom.hydrogens)
            if fits and all(gaps[option, chosen[other]] <= _LONGEST for other in near[number]):
                chosen.append(option)
                if place(number + 1):
                    return True
                chosen.pop()
        return False

    return chosen if place(0) else None


def _misfit(smiles: str, fact: str) -> DataError:
    return DataError(
        f"Elements and positions must be those of the SMILES. {shortened(smiles)}: found {fact}. Correct the row."
    )


def _features(molecule: Molecule, hydrogens: int) -> np.ndarray:
    found = np.zeros((len(molecule.atoms) + hydrogens, ATOM_FEATURES), dtype=np.uint8)
    found[:, 0], found[:, 5] = 1, 1  # Those of a hydrogen.
    for number, atom in enumerate(molecule.atoms):
        found[number] = 0
        found[number, _KINDS.index(atom.symbol)] = 1
        found[number, 5] = HEAVY[atom.symbol]
        found[number, 6] = atom.aromatic
        found[number, 6 + _hybridisation(molecule, number)] = 1
        found[number, 10] = atom.hydrogens or 0
    return found


def _hybridisation(molecule: Molecule, number: int) -> int:
    """Returns 1, 2 or 3 for sp, sp2 and sp3.

    A nitrogen or oxygen with single bonds alone is sp2 if its free electrons are conjugated with a double or aromatic
    bond of a neighbour.
    """
    around = list(molecule.neighbours(number))
    orders = [order for _, order in around]
    if TRIPLE in orders or orders.count(DOUBLE) > 1:
        return 1
    if DOUBLE in orders or AROMATIC in orders or molecule.atoms[number].aromatic:
        return 2
    flat = molecule.atoms[number].symbol in "NO" and molecule.atoms[number].charge <= 0
    beside = {order for other, _ in around for _, order in molecule.neighbours(other)}
    return 2 if flat and beside & {DOUBLE, AROMATIC} else 3


@dataclass(frozen=True)
class Library:
    """N molecules in a few arrays, which can be read through memory maps.

    Attributes:
        rows: int64 (N,), increasing: the row of each molecule in its source.
        ends: int64 (N, 2), where its atoms and its bonds end.
        atoms: uint8 (sum of atoms, 11).
        bonds: uint8 (sum of bonds, 3); atoms are counted within the molecule.
        positions: float32 (sum of atoms, 3).
        targets: float32 (N, T), NaN = missing.
    """

    rows: np.ndarray
    ends: np.ndarray
    atoms: np.ndarray
    bonds: np.ndarray
    positions: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Structure:
        (atom, bond), (last_atom, last_bond) = self.ends[index - 1] if index else (0, 0), self.ends[index]
        return Structure(
            self.atoms[atom:last_atom], self.bonds[bond:last_bond], np.asarray(self.positions[atom:last_atom])
        )

    @classmethod
    def of(cls, rows: np.ndarray, structures: Iterable[Structure], targets: np.ndarray) -> Library:
        """Joins structures."""
        found = list(structures)
        return cls(
            np.asarray(rows, dtype=np.int64),
            np.cumsum([(len(one.atoms), len(one.bonds)) for one in found], 0, dtype=np.int64),
            np.concatenate([one.atoms for one in found]),
            np.concatenate([one.bonds for one in found]),
            np.concatenate([one.positions for one in found]),
            np.asarray(targets, dtype=np.float32),
        )

    def whole(self) -> bool:
        """Returns whether the arrays belong together."""
        sizes = len(self.rows) == len(self.ends) == len(self.targets) and len(self.atoms) == len(self.positions)
        return bool(sizes and len(self.rows) and tuple(self.ends[-1]) == (len(self.atoms), len(self.bonds)))
