"""Reads the current study of a suite from its results folder: its record, and the states of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlbench import suite as suites
from mtlbench.errors import MethodError, StoreError, inert, unknown_name
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import read_json
from mtlbench.study.record import fault_of


def study_of(results: Path, suite: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder and the record of a suite's current study.

    Raises:
        StoreError: If the suite has not run yet, or the record is damaged.
    """
    name = Path(suite).stem
    root = results / name
    path = root / "study.json"
    record = read_json(path)
    if record is None and path.exists():
        raise _damaged(path, "it is not a readable JSON object", suite)
    if record is None:
        if not Path(suite).suffix and name not in suites.available() and not root.exists():
            raise StoreError(unknown_name("suite", name, suites.available()))
        found = "is not a folder" if results.exists() and not results.is_dir() else "does not exist"
        reason = f"{results} {found}" if not results.is_dir() else f"{results} holds no study of {name}"
        raise StoreError(
            f"The results folder must hold a study of the suite. {reason}. Name another folder with --results "
            f"(RESULTS=), or start the study: mtlbench bench {suite} --results {results}"
        )
    if fault := fault_of(record):
        raise _damaged(path, fault, suite)
    return root, inert(record)


def needs_images(spec: RunSpec, what: str) -> None:
    """Refuses a run whose inputs are no images.

    Args:
        spec: The run.
        what: What needs images, at the start of a sentence.

    Raises:
        MethodError: If so.
    """
    if "image_size" not in spec.model:
        raise MethodError(
            f"{what} needs a run on images. {spec.run_id} has the encoder {spec.model.get('encoder')}. Use "
            "mtlbench.load_run in Python, or mtlbench predict."
        )


def _damaged(path: Path, fault: str, suite: str) -> StoreError:
    return StoreError(
        f"study.json must be as a bench wrote it. {path} is damaged: {fault}. Run the suite again, which writes it "
        f"anew and keeps finished runs: mtlbench bench {suite}"
    )


def failed_runs(record: Mapping[str, Any], states: Mapping[str, str]) -> list[str]:
    """Return the runs whose failure is one of the study; a failed trial of a search is only a choice less."""
    trials = {run_id for row in record["rows"] for run_id in row.get("trials") or ()}
    return [run_id for run_id, state in states.items() if state == "failed" and run_id not in trials]


def broken_off(record: Mapping[str, Any]) -> list[str]:
    """Return a line for every plan that broke off although its runs were done."""
    return [inert(f"plan of {r['label']}, seed {r['seed']}: {r['error']}") for r in record["rows"] if r.get("error")]
