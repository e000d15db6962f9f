"""Reads QM9 from the archive of a Python package: targets in the papers' units, and structures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlbench.data.packages import Package
from mtlbench.errors import DataError, unknown_name

from .structures import Library, structure

PACKAGE = Package(
    "qm9pack==1.0.3",
    "qm9pack-1.0.3-py3-none-any.whl",
    "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
    "qm9pack 1.0.3 (104 MB): MIT licence; cite Ramakrishnan et al., Scientific Data 1, 140022 (2014).",
)
PARTS = tuple(f"qm9pack/data/qm9_part{number}.csv" for number in (1, 2, 3))

MEV = 27211.386246
"""meV per Hartree (CODATA 2018)."""


@dataclass(frozen=True)
class Property:
    """A property of QM9.

    Attributes:
        column: Its column in the package, whose values are in atomic units.
        unit: Unit in which it is predicted and scored.
        factor: From the column's unit to ``unit``.
        low: No value of the column, or of atomisation energy per atom, is lower.
        high: None is higher.
        atoms: Symbol -> energy of a free atom, in Hartree: the target is the atomisation energy. Empty: as it is.
    """

    column: str
    unit: str
    factor: float
    low: float
    high: float
    atoms: Mapping[str, float] | None = None


def _energy(column: str, *atoms: float) -> Property:
    return Property(column, "meV", MEV, -0.5, -0.01, dict(zip("HCNOF", atoms, strict=True)))


PROPERTIES: Mapping[str, Property] = {
    "mu": Property("Dipole_debye", "D", 1, 0, 100),
    "alpha": Property("Polarizability_bohr3", "a0³", 1, 1, 1000),
    "homo": Property("HOMO_au", "meV", MEV, -1, 0),
    "lumo": Property("LUMO_au", "meV", MEV, -1, 1),
    "r2": Property("R2_bohr2", "a0²", 1, 1, 1e5),
    "zpve": Property("ZPVE_au", "meV", MEV, 0, 1),
    "u0": _energy("InternalEnergy_0K_au", -0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u": _energy("InternalEnergy_298K_au", -0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h": _energy("Enthalphy_298K_au", -0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g": _energy("GibbsFreeEnergy_298K_au", -0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
    "cv": Property("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)", 1, 1, 500),
}
"""Task -> property. Energies of free atoms are those that the authors of QM9 publish with it."""

STRUCTURE = ("SMILES", "Elements", "XYZ_Ang")
"""Columns of SMILES, symbols and positions in Å."""


def read(archive: Path, columns: Sequence[str]) -> Any:
    """Returns columns of all molecules of the package as a data frame.

    Raises:
        DataError: The archive cannot be read, or lacks a column.
    """
    import pandas as pd

    with _readable(archive), zipfile.ZipFile(archive) as opened:
        parts = []
        for name in PARTS:
            content = io.BytesIO(opened.read(name))
            head = content.readline().decode().strip().split(",")
            for column in columns:
                if column not in head:
                    raise DataError(f"{archive}: {name}: " + unknown_name("column", column, head))
            content.seek(0)
            parts.append(pd.read_csv(content, usecols=list(columns)))
        return pd.concat(parts, ignore_index=True)


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Parsers raise their own errors, and those of decoders.
        raise DataError(
            f"The archive must be readable. {archive}: {type(error).__name__}: {error}. Remove it, and fetch it again: "
            "mtlbench data SUITE --download --agree"
        ) from error


def symbols(cell: str) -> list[str]:
    """Returns the elements of a cell such as ``['C','H','H']``."""
    return [part.strip(" '\"") for part in cell.strip("[] ").split(",")]


def places(cell: str) -> np.ndarray:
    """Returns the positions (n, 3) of a cell such as ``[[0.0,1.0,2.0],[0.5,1.5,2.5]]``.

    Raises:
        DataError: It has another form.
    """
    try:
        return np.array(cell.replace("[", "").replace("]", "").split(","), dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise DataError(f"Positions are [[x,y,z],...] in Å. Found {cell[:60]!r}. Correct the cell.") from error


def targets(frame: Any, elements: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the targets (N, 11) of molecules in the order and the units of `PROPERTIES`.

    Energies u0, u, h and g become atomisation energies: those of the free atoms are subtracted.

    Args:
        frame: Molecules, with the columns of `PROPERTIES`.
        elements: Symbols of each molecule's atoms.

    Raises:
        DataError: A column does not hold numbers, or not in atomic units.
    """
    counts = {symbol: np.array([list(each).count(symbol) for each in elements]) for symbol in "HCNOF"}
    atoms = np.array([len(each) for each in elements])
    found = np.empty((len(frame), len(PROPERTIES)))
    for place, (name, about) in enumerate(PROPERTIES.items()):
        try:
            values = frame[about.column].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: the column {about.column} holds numbers. {error}. Correct the cell.") from error
        if about.atoms:
            values = values - sum(energy * counts[symbol] for symbol, energy in about.atoms.items())
        ranged = values / atoms if about.atoms else values
        odd = (ranged < about.low) | (ranged > about.high)
        if odd.any():
            row, what = int(odd.argmax()), " per atom after atomisation" if about.atoms else ""
            raise DataError(
                f"{name}: the column {about.column} is in atomic units, as QM9 is published: from {about.low:g} to "
                f"{about.high:g}{what}. Found {ranged[row]:.6g} in row {row + 1}. Convert the column."
            )
        found[:, place] = values * about.factor
    return found


def library(archive: Path, rows: np.ndarray | None) -> Library:
    """Returns molecules of the package.

    Args:
        archive: The package.
        rows: Rows of its table, increasing. None for all.

    Raises:
        DataError: The archive is damaged, or a row is wrong.
    """
    frame = read(archive, [*STRUCTURE, *(about.column for about in PROPERTIES.values())])
    rows = np.arange(len(frame)) if rows is None else rows
    return joined(frame.iloc[rows], rows)


def joined(frame: Any, rows: np.ndarray) -> Library:
    """Returns molecules of a data frame with the columns of `PROPERTIES` and `STRUCTURE`.

    Args:
        frame: Molecules.
        rows: Their rows in the whole table, increasing.

    Raises:
        DataError: A row is wrong.
    """
    elements = [symbols(cell) for cell in frame["Elements"]]
    structures = [
        structure(smiles, each, places(cell))
        for smiles, each, cell in zip(frame["SMILES"], elements, frame["XYZ_Ang"], strict=True)
    ]
    return Library.of(rows, structures, targets(frame, elements))
