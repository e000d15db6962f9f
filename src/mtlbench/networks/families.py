"""The families of encoders by name."""

from __future__ import annotations

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.networks.family import Family
from mtlbench.networks.graphs import Graphs
from mtlbench.networks.images import Images
from mtlbench.networks.texts import Texts
from mtlbench.networks.vectors import Vectors

FAMILIES: dict[str, Family] = {family.name: family for family in (Images(), Vectors(), Texts(), Graphs())}
"""Name -> family. A new family is one file and one entry here."""


def family_of(encoder: str) -> Family:
    """Returns the family of an encoder.

    Args:
        encoder: ``family:name``, or a plain name of timm's.

    Raises:
        SuiteError: There is no such family.
    """
    family, colon, _ = encoder.rpartition(":")
    if colon and family not in FAMILIES:
        raise SuiteError(unknown_name("family of encoders", family, FAMILIES))
    return FAMILIES[family if colon else Images.name]
