"""Makes a run folder that its author has changed on purpose: every hash in it fits the change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlbench.runs import seal
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import read_json, write_json


def forged(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copies a run beside itself with a changed specification, under the identity that this one has."""
    record = read_json(run / "spec.json")
    assert record is not None
    change(record)
    spec = RunSpec.from_json(record)
    folder = run.with_name(spec.run_id)
    shutil.copytree(run, folder)
    write_json(folder / "spec.json", spec.to_json())
    reseal(folder, lambda result: result.update(hash=spec.hash, run_id=spec.run_id))
    return folder


def reseal(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a result and gives it the digest of its new content; its list of files stays as it is."""
    result = json.loads((run / "result.json").read_text())
    change(result)
    write_json(run / "result.json", seal.sealed(result))
