"""Loads a finished run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtlbench import registry
from mtlbench.data import MTLDataModule
from mtlbench.errors import StoreError, place_of
from mtlbench.method import MTLMethod
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import finished_run
from mtlbench.training import checkpoint
from mtlbench.training.build import build


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to predict.

    Attributes:
        method: The trained method in evaluation mode; call it with uint8 images (B, 3, H, W).
        data: The data module it was trained on.
        spec: Its specification.
        result: Its scores and cost.
    """

    method: MTLMethod
    data: MTLDataModule
    spec: RunSpec
    result: dict[str, Any]


def load_run(folder: str | Path, *, data: str | None = None, allow: Collection[str] = ()) -> LoadedRun:
    """Loads a finished run for prediction or further study.

    Args:
        folder: ``results/<suite>/<run_id>``.
        data: Folder of the data, if it has moved since.
        allow: Modules or packages of your own that the run may import. Shipped code and registered entry points
            need no permission; code inside the folder of the results is never imported.

    Raises:
        MethodError: If the run names code that was not allowed.
        StoreError: If there is no such run, it is not done, or its weights are damaged.

    Example::

        run = mtlbench.load_run("results/digits/uniform-s0-1a2b3c4d")
        predictions = run.method(images)          # {task: (B, channels, H, W)}
    """
    path = Path(folder)
    spec, result = finished_run(path)
    if data is not None:
        spec = replace(spec, local={**spec.local, "root": data})
    if isinstance(allow, str):
        allow = [allow]
    try:
        method, module = build(spec, trusted=registry.Trusted(tuple(allow), _results_of(path)))
        method.configure_model()
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StoreError(
            f"spec.json must describe a run of this version. {path / 'spec.json'}: {type(error).__name__}: {error}"
            f"{place_of(error)}. Run the bench again to train it anew."
        ) from error
    weights = checkpoint.final(path, result)
    try:
        method.load_state_dict(weights["state_dict"])
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"Weights must fit the method. {path}: another version trained them. {error}") from error
    return LoadedRun(method.eval(), module, spec, result)


def _results_of(run: Path) -> Path:
    """Return the folder of all results that a run lies in, or its suite's if the current folder lies in that one."""
    results = run.resolve().parents[1]
    return run.resolve().parent if Path.cwd().resolve().is_relative_to(results) else results
