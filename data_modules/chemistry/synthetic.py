"""Synthetic molecules whose properties are sums over their atoms and bonds, in the form in which QM9 is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtlbench.seeding import seed_of

from .qm9 import PROPERTIES
from .smiles import DOUBLE, SINGLE, TRIPLE

_FREE = {"C": 4, "N": 3, "O": 2, "F": 1}
_SIGNS = {SINGLE: "", DOUBLE: "=", TRIPLE: "#"}
_LENGTHS = {SINGLE: 1.5, DOUBLE: 1.35, TRIPLE: 1.2}
_TO_HYDROGEN = 1.0

ENERGIES = {SINGLE: 0.13, DOUBLE: 0.22, TRIPLE: 0.30}
"""Energy of a bond between heavy atoms, in Hartree. One to a hydrogen has `HYDROGEN_ENERGY`."""
HYDROGEN_ENERGY = 0.16
POLARISABILITIES = {"H": 2.0, "C": 9.0, "N": 7.0, "O": 5.0, "F": 3.5}
"""Contribution of an atom to alpha, in a0³."""
CHARGES = {"H": 0.15, "C": -0.05, "N": -0.3, "O": -0.4, "F": -0.2}
"""Charge of an atom, in elementary charges: mu is the length of Σ charge · (position - mean position) · 4.8 D/Å."""

_DIRECTIONS = 24


def frame(rows: Sequence[int]) -> Any:
    """Returns synthetic molecules as a data frame with the columns of `qm9.PROPERTIES` and `qm9.STRUCTURE`.

    They are trees of up to six heavy atoms with single, double and triple bonds, filled with hydrogens. Bonds have
    fixed lengths and random directions.

    Args:
        rows: Number of each molecule, which alone decides it.
    """
    import pandas as pd

    return pd.DataFrame([_row(np.random.default_rng(seed_of("molecule", row))) for row in rows])


def _row(generator: np.random.Generator) -> dict[str, object]:
    atoms, parents, orders = _tree(generator)
    free = [_FREE[symbol] for symbol in atoms]
    for number, (parent, order) in enumerate(zip(parents, orders, strict=True)):
        if parent >= 0:
            free[number] -= order
            free[parent] -= order
    heavy = len(atoms)
    elements = [*atoms, *("H" for each in free for _ in range(each))]
    parents = [*parents, *(atom for atom, each in enumerate(free) for _ in range(each))]
    places = _places(generator, parents, [_LENGTHS[order] for order in orders], heavy)
    cells = ",".join("[" + ",".join(f"{value:.6f}" for value in place) + "]" for place in places)
    properties = _properties(elements, orders[1:], np.round(places, 6))
    return {
        "SMILES": _text(atoms, parents[:heavy], orders, 0),
        "Elements": "[" + ",".join(f"'{symbol}'" for symbol in elements) + "]",
        "XYZ_Ang": f"[{cells}]",
        **{about.column: properties[name] for name, about in PROPERTIES.items()},
    }


def _tree(generator: np.random.Generator) -> tuple[list[str], list[int], list[int]]:
    """Returns symbols, the parent of every atom (-1 for the first) and the bond to it, in depth-first order."""
    atoms, parents, orders, free = ["C"], [-1], [SINGLE], [4]
    wanted = int(generator.integers(2, 7))
    path = [0]
    while len(atoms) < wanted and path:
        if not free[path[-1]]:
            path.pop()
            continue
        symbol = str(generator.choice(list(_FREE), p=[0.6, 0.18, 0.17, 0.05]))
        order = min(int(generator.choice([1, 1, 1, 2, 2, 3])), free[path[-1]], _FREE[symbol])
        free[path[-1]] -= order
        atoms.append(symbol)
        parents.append(path[-1])
        orders.append(order)
        free.append(_FREE[symbol] - order)
        path.append(len(atoms) - 1)
        while len(path) > 1 and (not free[path[-1]] or generator.random() < 0.3):
            path.pop()
    return atoms, parents, orders


def _text(atoms: list[str], parents: list[int], orders: list[int], number: int) -> str:
    """Returns the SMILES of an atom and what hangs on it; atoms stand in depth-first order."""
    children = [child for child, parent in enumerate(parents) if parent == number]
    parts = [_SIGNS[orders[child]] + _text(atoms, parents, orders, child) for child in children]
    branches = "".join(f"({part})" for part in parts[:-1])
    return atoms[number] + branches + (parts[-1] if parts else "")


def _places(generator: np.random.Generator, parents: list[int], lengths: list[float], heavy: int) -> np.ndarray:
    """Returns positions: every atom in the direction, of some, in which it is farthest from all others."""
    places = np.zeros((len(parents), 3))
    for number, parent in enumerate(parents[1:], start=1):
        rays = generator.standard_normal((_DIRECTIONS, 3))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        options = places[parent] + (lengths[number] if number < heavy else _TO_HYDROGEN) * rays
        others = np.delete(places[:number], parent, axis=0)
        gaps = np.linalg.norm(options[:, None] - others[None], axis=2).min(1) if len(others) else np.zeros(len(rays))
        places[number] = options[gaps.argmax()]
    return places


def _properties(elements: list[str], orders: list[int], places: np.ndarray) -> dict[str, float]:
    """Returns the properties in the units of the package's columns."""
    hydrogens = elements.count("H")
    bonds = len(elements) - 1
    centred = places - places.mean(0)
    charges = np.array([CHARGES[symbol] for symbol in elements])
    energy = -sum(ENERGIES[order] for order in orders) - HYDROGEN_ENERGY * hydrogens
    multiple = len([order for order in orders if order != SINGLE])
    found = {
        "mu": 4.8 * float(np.linalg.norm(charges @ centred)),
        "alpha": sum(POLARISABILITIES[symbol] for symbol in elements),
        "homo": -0.3 + 0.01 * multiple + 0.005 * elements.count("N"),
        "lumo": 0.08 - 0.03 * multiple - 0.005 * elements.count("O"),
        "r2": 10 + 5 * float((centred**2).sum()),
        "zpve": 0.006 * bonds + 0.004 * hydrogens,
        "cv": 4 + 1.2 * len(elements),
    }
    for name, share in (("u0", 1.0), ("u", 1.005), ("h", 1.006), ("g", 0.93)):
        free = PROPERTIES[name].atoms or {}
        found[name] = share * energy + sum(free[symbol] for symbol in elements)
    return found
