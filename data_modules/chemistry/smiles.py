"""Reads SMILES of small organic molecules: atoms, bonds and hydrogens; finds aromatic rings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mtlbench.errors import DataError, shortened

HEAVY = {"C": 6, "N": 7, "O": 8, "F": 9}
"""Symbol -> atomic number of the elements besides hydrogen that occur in QM9."""

SINGLE, DOUBLE, TRIPLE, AROMATIC = 1, 2, 3, 4

_ORDERS = {"-": SINGLE, "=": DOUBLE, "#": TRIPLE, ":": AROMATIC, "/": SINGLE, "\\": SINGLE}
_VALENCES = {"C": (4,), "N": (3, 5), "O": (2,), "F": (1,)}
_TOKEN = re.compile(
    r"\[(?P<bracket>[^\[\]]+)\]|(?P<plain>[CNOFcno])|(?P<bond>[-=#:/\\])|(?P<open>\()|(?P<close>\))|(?P<ring>%\d\d|\d)"
)
_BRACKET = re.compile(r"\d*(?P<symbol>[A-Z][a-z]?|[cno])@{0,2}(?P<hydrogens>H\d*)?(?P<charge>\++|-+|[+-]\d)?(:\d+)?")


@dataclass
class Atom:
    """An atom other than hydrogen.

    Attributes:
        symbol: Element.
        hydrogens: Hydrogens that are bound to it; None until they are counted.
        charge: Formal charge.
        aromatic: Whether it is part of an aromatic ring.
    """

    symbol: str
    hydrogens: int | None = None
    charge: int = 0
    aromatic: bool = False


@dataclass
class Molecule:
    """Atoms, and bonds between them.

    Attributes:
        atoms: Atoms in the order of the text.
        bonds: (i, j) with i < j -> `SINGLE`, `DOUBLE`, `TRIPLE` or `AROMATIC`.
    """

    atoms: list[Atom] = field(default_factory=list)
    bonds: dict[tuple[int, int], int] = field(default_factory=dict)

    def neighbours(self, atom: int) -> Iterator[tuple[int, int]]:
        """Yields the atoms that are bound to an atom, each with its bond."""
        for (i, j), order in self.bonds.items():
            if atom in (i, j):
                yield i + j - atom, order


def read(smiles: str) -> Molecule:
    """Returns the molecule that a SMILES describes.

    Aromatic rings are those written in lower case, and rings of five or six atoms with six π electrons (Hückel's rule);
    see `_find_aromatic`. Stereochemistry and isotopes are ignored.

    Hydrogens are counted, and are never atoms of their own (``[H]``).

    Raises:
        DataError: It is no SMILES of one connected molecule of the elements of `HEAVY` and hydrogen.
    """
    molecule = Molecule()
    reader = _Reader(smiles, molecule)
    place = 0
    while place < len(smiles):
        match = _TOKEN.match(smiles, place)
        if match is None or not reader.take(match.lastgroup or "", match[match.lastgroup or 0]):
            raise _wrong(smiles, f"Character {place + 1}, {smiles[place]!r}, fits no rule")
        place = match.end()
    reader.finish()
    for number, atom in enumerate(molecule.atoms):
        if atom.hydrogens is None:
            atom.hydrogens = _implicit(molecule, number)
    _find_aromatic(molecule)
    return molecule


class _Reader:
    """Takes a SMILES token by token.

    Attributes:
        last: The atom to which the next one is bound; -1 at the start.
        bond: The bond symbol that was read; 0 for none.
        stack: Atoms at which parentheses were opened.
        rings: Ring number -> the atom at which it was opened, and its bond.
    """

    def __init__(self, smiles: str, molecule: Molecule) -> None:
        self.smiles, self.molecule = smiles, molecule
        self.last, self.bond = -1, 0
        self.stack: list[int] = []
        self.rings: dict[int, tuple[int, int]] = {}

    def take(self, kind: str, text: str) -> bool:
        """Takes a token; returns False if it cannot stand here."""
        if kind in ("bracket", "plain"):
            self.molecule.atoms.append(_bracket(self.smiles, text) if kind == "bracket" else _plain(text))
            new = len(self.molecule.atoms) - 1
            if self.last >= 0:
                _bind(self.molecule, self.smiles, self.last, new, self.bond)
            self.last, self.bond = new, 0
        elif self.last < 0 or (kind == "close" and not self.stack) or (kind != "ring" and self.bond):
            return False
        elif kind == "bond":
            self.bond = _ORDERS[text]
        elif kind == "open":
            self.stack.append(self.last)
        elif kind == "close":
            self.last = self.stack.pop()
        else:
            self._ring(int(text.removeprefix("%")))
        return True

    def _ring(self, number: int) -> None:
        if number in self.rings:
            start, order = self.rings.pop(number)
            _bind(self.molecule, self.smiles, start, self.last, self.bond or order)
        else:
            self.rings[number] = self.last, self.bond
        self.bond = 0

    def finish(self) -> None:
        """Checks that nothing is left open."""
        if not self.molecule.atoms:
            raise _wrong(self.smiles, "It has no atom")
        if self.stack or self.rings or self.bond:
            what = "a parenthesis" if self.stack else f"ring {next(iter(self.rings))}" if self.rings else "a bond"
            raise _wrong(self.smiles, f"Its end leaves {what} open")


def _plain(text: str) -> Atom:
    return Atom(text.upper(), aromatic=text.islower())


def _bracket(smiles: str, text: str) -> Atom:
    match = _BRACKET.fullmatch(text)
    if not match or match["symbol"].upper() not in HEAVY:
        raise _wrong(smiles, f"[{text}] is none of {', '.join(HEAVY)}, with its hydrogens as in [NH3+]")
    symbol, hydrogens, charge = match["symbol"], match["hydrogens"] or "", match["charge"] or ""
    number = int(charge) if charge[1:].isdigit() else charge.count("+") - charge.count("-")
    return Atom(symbol.upper(), int(hydrogens[1:] or 1) if hydrogens else 0, number, symbol.islower())


def _bind(molecule: Molecule, smiles: str, one: int, other: int, order: int) -> None:
    pair = min(one, other), max(one, other)
    if one == other or pair in molecule.bonds:
        raise _wrong(smiles, f"Atoms {pair[0] + 1} and {pair[1] + 1} are bound twice, or an atom to itself")
    both = molecule.atoms[one].aromatic and molecule.atoms[other].aromatic
    molecule.bonds[pair] = order or (AROMATIC if both else SINGLE)


def _implicit(molecule: Molecule, number: int) -> int:
    """Returns the hydrogens that fill an atom to its least possible valence."""
    atom = molecule.atoms[number]
    orders = [1 if order == AROMATIC else order for _, order in molecule.neighbours(number)]
    used = sum(orders) + atom.aromatic  # One electron of an aromatic atom belongs to the ring.
    return next((valence - used for valence in _VALENCES[atom.symbol] if valence >= used), 0)


def _find_aromatic(molecule: Molecule) -> None:
    """Marks rings of five or six atoms with six π electrons, as the usual programs do for such rings.

    An atom with a double bond in the ring gives one electron, a nitrogen or oxygen without a double bond two, and a
    carbon with a double bond to a nitrogen or oxygen outside the ring none. Rings with any other atom are not aromatic.
    """
    found = [ring for ring in _rings(molecule) if _electrons(molecule, ring) == 6]
    for ring in found:
        for one, other in zip(ring, (*ring[1:], ring[0]), strict=True):
            molecule.atoms[one].aromatic = True
            molecule.bonds[min(one, other), max(one, other)] = AROMATIC


def _rings(molecule: Molecule) -> list[tuple[int, ...]]:
    """Returns every cycle of five or six atoms once."""
    if len(molecule.bonds) < len(molecule.atoms):  # A tree.
        return []
    near = [[other for other, _ in molecule.neighbours(number)] for number in range(len(molecule.atoms))]
    found: list[tuple[int, ...]] = []

    def walk(path: tuple[int, ...]) -> None:
        for after in near[path[-1]]:
            if after == path[0] and len(path) >= 5 and path[1] < path[-1]:
                found.append(path)
            elif after > path[0] and after not in path and len(path) < 6:
                walk((*path, after))

    for start in range(len(molecule.atoms)):
        walk((start,))
    return found


def _electrons(molecule: Molecule, ring: tuple[int, ...]) -> int:
    """Returns the π electrons of a ring; -1 if an atom of it cannot be part of an aromatic ring."""
    total = 0
    for number in ring:
        atom = molecule.atoms[number]
        double = [other for other, order in molecule.neighbours(number) if order == DOUBLE]
        if any(order == TRIPLE for _, order in molecule.neighbours(number)) or len(double) > 1:
            return -1
        if (double and double[0] in ring) or (atom.aromatic and not double and atom.symbol == "C"):
            total += 1
        elif double and atom.symbol == "C" and molecule.atoms[double[0]].symbol in "NO":
            continue
        elif not double and atom.symbol in "NO" and atom.charge == 0:
            total += 2
        else:
            return -1
    return total


def _wrong(smiles: str, fact: str) -> DataError:
    return DataError(
        "A molecule is a SMILES of one connected molecule of H, C, N, O and F. "
        f"{shortened(repr(smiles))}: {fact}. Correct it."
    )
