"""The configurations of GLUE with a few texts, as `datasets` saves them: what `data_modules.glue` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlbench.data.hub import PLACE

from ..glue import PARTS, Part
from .writing import whole


def write_glue(folder: str | Path, *, train: int = 60, val: int = 0, seed: int = 0) -> Path:
    """Writes every configuration of GLUE, with short texts whose words reveal their labels.

    Args:
        folder: Where ``hub/`` is put; made if absent.
        train: Rows of a training split; at least 60, so that some are for validation.
        val: Rows of the validation split; at least 20.
        seed: Not used.

    Returns:
        ``folder``.
    """
    train, val = max(60, train), max(20, val)
    recipe = {"set": "glue", "version": 1, "train": train, "val": val}
    with whole(Path(folder) / PLACE / "nyu-mll--glue", recipe) as target:
        for config, part in PARTS.items() if target is not None else ():
            saved(part, train, val).save_to_disk(str(target / config))  # type: ignore[operator]
    return Path(folder)


def saved(part: Part, train: int, val: int) -> Any:
    """Returns a configuration with three splits; that for testing has the label -1 throughout, as GLUE's."""
    import datasets

    counts = {"train": train, part.test: val, "test": 3}
    return datasets.DatasetDict({split: _rows(part, split, count) for split, count in counts.items()})


def _rows(part: Part, split: str, count: int) -> Any:
    import datasets

    classes = part.about.get("classes")
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("float32")
    labels = [i % len(classes) if classes else float(i % 6) for i in range(count)]
    rows: dict[str, Any] = {
        name: [f"{split} {place} {i}: {labels[i]} words" for i in range(count)]
        for place, name in enumerate(part.columns)
    }
    rows |= {"label": labels if split != "test" else [-1] * count, "idx": list(range(count))}
    about = {name: datasets.Value("string") for name in part.columns}
    features = datasets.Features({**about, "label": label, "idx": datasets.Value("int32")})
    return datasets.Dataset.from_dict(rows, features=features)
