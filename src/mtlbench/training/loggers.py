"""Records of a run: ``metrics.jsonl`` is the source, W&B a copy. The only module that imports wandb."""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtlbench.runs.spec import RunSpec

WAIT_S = 30.0
"""Seconds that a run waits for a W&B server at its start, and again at its end."""
USAGE = ("layer", "task", "expert", "probability", "load")
"""Columns of the table on the use of experts."""


class MetricsFile:
    """Appends rows, each with its ``step``, to ``metrics.jsonl``.

    Args:
        path: The file.
        resume_step: Rows after this step are dropped: they belong to work that a kill undid.
        again: Prefix of keys that the resumed run writes again at this very step: the final scores.

    Attributes:
        kept: The rows that were there already.
    """

    def __init__(self, path: Path, resume_step: int = 0, again: str | None = None):
        self.kept = [row for row in read_rows(path) if row["step"] <= resume_step] if resume_step else []
        if again is not None:
            self.kept = [r for r in self.kept if r["step"] < resume_step or not any(key.startswith(again) for key in r)]
        # Written beside and renamed: a kill now must not lose the rows of work that is kept.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
        os.replace(temporary, path)
        self._file = path.open("a")

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
    """Return ``online``, ``offline`` or ``disabled`` from ``WANDB_MODE``; unset means disabled.

    Online without an account becomes offline: a run never prompts and never waits for a login.
    """
    mode = os.environ.get("WANDB_MODE", "disabled")
    if mode == "online" and not (os.environ.get("WANDB_API_KEY") or _stored_key()):
        print("W&B: no account found (wandb login); the run is logged offline. `wandb sync` uploads it later.")
        return "offline"
    return mode if mode in ("online", "offline") else "disabled"


class Tracker:
    """One W&B run per training run, on rank zero only. An error of W&B ends the tracking, not the run.

    A row's step is also W&B's own step: what a resumed run does again is not logged twice.

    Args:
        spec: The run; its id is the W&B id, so that a resumed run continues.
        folder: Where W&B keeps its files.
        active: Whether this process tracks at all (rank zero).
        history: Rows of an interrupted run up to where it resumes; W&B gets those that it has lost.
    """

    def __init__(self, spec: RunSpec, folder: Path, *, active: bool = True, history: Sequence[Mapping[str, Any]] = ()):
        self._run: Any = None
        mode = wandb_mode() if active else "disabled"
        if mode == "online" and not self._guarded(lambda: self._start(spec, folder, mode), "It goes on offline."):
            mode = "offline"
            self._guarded(_forget_service)
        if mode == "offline":
            self._guarded(lambda: self._start(spec, folder, mode))
        for row in history:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Logs a row on the one step axis; passes over steps that a resumed W&B run has already."""
        if self._run is not None and row["step"] >= self._first:
            values = {key: value for key, value in row.items() if key != "step"}
            values["trainer/global_step"] = row["step"]
            self._guarded(lambda: self._run.log(values, step=row["step"]))

    def finish(self, summary: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        """Writes final scores and costs and ends the W&B run.

        Args:
            summary: Scores and costs by name.
            record: What `MTLMethod.summary` returned. The use of experts becomes the table ``experts/usage``: one row
                per layer, task and expert.
        """
        if self._run is not None:
            self._guarded(lambda: self._run.summary.update(dict(summary)))
        if self._run is not None and (rows := _usage_rows(record or {})):
            self._guarded(lambda: self._log_table("experts/usage", USAGE, rows))
        self.close(0)

    def close(self, code: int = 1) -> None:
        """Ends the W&B run, if it has not ended: without success, unless ``code`` is 0."""
        if self._run is not None:
            self._guarded(lambda: self._run.finish(exit_code=code))
            self._run = None

    def _log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        # Without a step it joins the last row.
        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def _start(self, spec: RunSpec, folder: Path, mode: str) -> None:
        import wandb

        only = f" [{next(iter(spec.tasks))}]" if len(spec.tasks) == 1 else ""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mtlbench"),
            id=spec.run_id,
            name=f"{spec.label}{only} s{spec.seed}",
            group=spec.suite,
            job_type=spec.label,
            config=spec.identity(),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            settings=wandb.Settings(silent=True, init_timeout=WAIT_S, finish_timeout=WAIT_S, x_disable_stats=True),
        )
        self._first = self._run.step
        self._run.define_metric("*", step_metric="trainer/global_step")

    def _guarded(self, action: Callable[[], Any], then: str = "The run's own records are complete.") -> bool:
        try:
            action()
        except Exception as error:
            print(f"W&B tracking stopped: {type(error).__name__}: {error}. {then}")
            self._run = None
            return False
        return True


def _usage_rows(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    experts = record.get("experts", {"tasks": [], "layers": {}})
    return [
        (layer, task, expert, probability, load)
        for layer, tables in experts["layers"].items()
        for task, *rows in zip(experts["tasks"], tables["probability"], tables["load"], strict=True)
        for expert, (probability, load) in enumerate(zip(*rows, strict=True))
    ]


def _forget_service() -> None:
    """Ends W&B's background process, which would hold on to the id of a run that could not start."""
    import wandb

    wandb.teardown()


def _stored_key() -> bool:
    """Returns whether ``wandb login`` has left a key for the server in use."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return server in known
