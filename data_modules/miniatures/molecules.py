"""An archive of synthetic molecules in the layout of the package that holds QM9."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..chemistry import synthetic
from ..chemistry.qm9 import PACKAGE, PARTS
from .writing import whole


def write_molecules(folder: str | Path, *, train: int = 100, val: int = 0, seed: int = 0) -> Path:
    """Writes the archive.

    Args:
        folder: Where ``packages/`` is put; made if absent.
        train: Molecules, at least 100, so that a batch of 64 can be drawn from 70 % of them.
        val: Added to them.
        seed: Not used.

    Returns:
        ``folder``.
    """
    count = max(100, train + val)
    with whole(Path(folder) / "packages", {"set": "molecules", "version": 1, "count": count}) as target:
        if target is not None:
            frame = synthetic.frame(range(count))
            with zipfile.ZipFile(target / PACKAGE.file, "w", zipfile.ZIP_DEFLATED) as archive:
                for number, name in enumerate(PARTS):
                    # A fixed time, so that the archive is the same bytes every time.
                    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                    archive.writestr(entry, frame.iloc[number :: len(PARTS)].to_csv(index=False))
    return Path(folder)
