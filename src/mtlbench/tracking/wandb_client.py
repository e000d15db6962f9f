"""Runs in W&B. The only module that imports wandb."""

from __future__ import annotations

import netrc
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mtlbench.runs import keys
from mtlbench.tracking.base import SUMMARY, About, Ending, Sink

WAIT_S = 30.0
"""Seconds that a run waits for a W&B server at its start, and again at its end."""

REACH_S = 5.0
"""Seconds within which a server must answer at all; if it does not, nothing waits for it any longer."""


def marker_of(path: Path) -> Path:
    """Return the file by which W&B marks that the server has all of a run's file ``run-<id>.wandb``."""
    return path.with_name(f"{path.name}.synced")


def wandb_mode() -> str:
    """Return ``online``, ``offline`` or ``disabled`` from ``WANDB_MODE``; unset means disabled.

    Online without an account becomes offline: a run never prompts and never waits for a login.
    """
    mode = os.environ.get("WANDB_MODE", "disabled")
    if mode == "online" and not has_account():
        print("W&B: no account found (wandb login); the run is logged offline. `mtlbench sync` sends it later.")
        return "offline"
    return mode if mode in ("online", "offline") else "disabled"


def has_account() -> bool:
    """Return whether a key for the server in use is in the environment, or was left by ``wandb login``."""
    return bool(os.environ.get("WANDB_API_KEY")) or _stored_key()


def project() -> str:
    """Return the project of all runs: ``WANDB_PROJECT``, by default ``mtlbench``."""
    return os.environ.get("WANDB_PROJECT") or "mtlbench"


class WandbRun(Sink):
    """One run in W&B. A row's step is also W&B's own step: what a resumed run does again is not logged twice.

    Args:
        about: The run; its id is the W&B id, so that a resumed run continues.
        folder: Where W&B keeps its files.
        mode: ``online`` or ``offline``.
    """

    def __init__(self, about: About, folder: Path, mode: str):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project(),
            id=about.id,
            name=about.name,
            group=about.suite,
            job_type=about.kind if about.kind == SUMMARY else about.label,
            tags=[about.kind],
            config=about.settings(),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder.resolve()),  # W&B's process may have another current folder.
            settings=wandb.Settings(
                silent=True,
                init_timeout=WAIT_S,
                finish_timeout=WAIT_S,
                finish_timeout_raises=True,
                x_disable_stats=True,
            ),
        )
        self.first, self._online, self._whole = self._run.starting_step, mode == "online", True
        self._file = Path(self._run.dir).parent / f"run-{about.id}.wandb"
        self._run.define_metric("*", step_metric=keys.AXIS)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log a row on the one step axis; pass over steps that a resumed W&B run has already."""
        if step >= self.first:
            self._run.log({**values, keys.AXIS: step}, step=step)

    def finish(self, ending: Ending) -> None:
        """Write the summary, then tables, pictures, figures and artifacts."""
        import wandb

        self._whole = False
        if ending.summary:
            self._run.summary.update(dict(ending.summary))
        media: dict[str, Any] = {
            key: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
            for key, table in ending.tables.items()
        }
        media |= {
            key: [wandb.Image(each.pixels, caption=each.caption) for each in pictures]
            for key, pictures in ending.pictures.items()
        }
        media |= {key: wandb.Plotly(figure) for key, figure in ending.figures.items()}
        if media:
            self._run.log(media)  # Without a step it joins the last row.
        for name, paths in ending.files.items():
            artifact = wandb.Artifact(name, type="model" if paths[0].suffix != ".html" else "report")
            for path in paths:
                artifact.add_file(str(path), policy="immutable")
            self._run.log_artifact(artifact)
        self._whole = True

    def close(self, code: int) -> None:
        """End the run, and note that the server has all of it; `mtlbench.tracking.sync` looks for the note."""
        self._run.finish(exit_code=code)
        if self._online and self._whole:
            marker_of(self._file).touch()


def forget_service() -> None:
    """End W&B's background process, which would hold on to the id of a run that could not start."""
    import wandb

    wandb.teardown()


def _stored_key() -> bool:
    host = urlsplit(server()).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return host in known


def unreachable() -> str:
    """Return why the W&B server does not answer, or ``""`` if it does or if that cannot be told this way."""
    try:
        with urlopen(Request(f"{server()}/graphql", method="OPTIONS"), timeout=REACH_S):
            return ""
    except HTTPError as error:
        return f"status {error.code}" if error.code in (500, 502, 503, 504) else ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else str(reason)  # W&B has certificates of its own.


def server() -> str:
    """Return the address of the W&B server in use."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def default_entity() -> str:
    """Return the entity of the account in use, or ``""`` if the server does not answer or knows no account."""
    import wandb

    try:
        return str(wandb.Api(timeout=round(WAIT_S)).default_entity or "")
    except Exception:  # Whatever the client raises, nobody can be named.
        return ""
