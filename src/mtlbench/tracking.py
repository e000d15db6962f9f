"""Records of a run: ``metrics.jsonl`` is the truth, W&B a view of it. The only importer of wandb."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlbench.plan import RunSpec

Row = dict[str, float | int]


class MetricsFile:
    """Appends rows, each with its ``step``, to ``metrics.jsonl``.

    Args:
        path: The file.
        resume_step: Rows after this step are dropped: they belong to work that a kill undid.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        rows = [row for row in read_rows(path) if row["step"] <= resume_step] if resume_step else []
        self._file = path.open("w")
        for row in rows:
            self.write(row)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``; a torn last line is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def wandb_mode() -> str:
    """Returns ``online``, ``offline`` or ``disabled`` as ``WANDB_MODE`` asks; nothing asked means disabled.

    Online without an account becomes offline: a run never prompts and never waits for a login.
    """
    mode = os.environ.get("WANDB_MODE", "disabled")
    if mode == "online" and not (os.environ.get("WANDB_API_KEY") or _stored_key()):
        print("W&B: no account found (wandb login); the run is logged offline. `wandb sync` uploads it later.")
        return "offline"
    return mode if mode in ("online", "offline") else "disabled"


class Tracker:
    """One W&B run per training run, rank zero only. Losing W&B loses nothing: its errors end tracking, not the run.

    Args:
        spec: The run; its id is the W&B id, so that a resumed run continues.
        folder: Where W&B keeps its files.
        active: Whether this process tracks at all (rank zero).
    """

    def __init__(self, spec: RunSpec, folder: Path, *, active: bool = True):
        self._run: Any = None
        if active and wandb_mode() != "disabled":
            self._guarded(lambda: self._start(spec, folder))

    def log(self, row: Mapping[str, Any]) -> None:
        """Logs a row on the one step axis."""
        if self._run is not None:
            values = {key: value for key, value in row.items() if key != "step"}
            self._guarded(lambda: self._run.log({**values, "trainer/global_step": row["step"]}))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes final scores and costs and ends the W&B run."""
        if self._run is not None:
            self._guarded(lambda: (self._run.summary.update(dict(summary)), self._run.finish()))

    def _start(self, spec: RunSpec, folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mtlbench"),
            id=spec.run_id,
            name=f"{spec.label} s{spec.seed}",
            group=spec.suite,
            job_type=spec.label,
            config=spec.identity(),
            resume="allow",
            mode=wandb_mode(),  # type: ignore[arg-type]
            dir=str(folder),
            settings=wandb.Settings(silent=True, init_timeout=30, x_disable_stats=True),
        )
        self._run.define_metric("*", step_metric="trainer/global_step")

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            print(f"W&B tracking stopped: {type(error).__name__}: {error}. The run's own records are complete.")
            self._run = None


def _stored_key() -> bool:
    try:
        return "api.wandb.ai" in Path("~/.netrc").expanduser().read_text()
    except OSError:
        return False
