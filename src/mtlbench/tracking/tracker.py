"""One tracker per run: passes its rows on to every tool that the environment asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtlbench.tracking.base import About, Ending, Sink
from mtlbench.tracking.others import SINKS, wanted
from mtlbench.tracking.wandb_client import WandbRun, forget_service, server, unreachable, wandb_mode

WANDB = "W&B"


class Tracker:
    """Follows one run in W&B and other tools, on rank zero only. An error of a tool ends its tracking, not the run.

    Args:
        about: The run.
        folder: Where tools keep their files.
        active: Whether this process tracks at all (rank zero).
        history: Rows of an interrupted run up to where it resumes; a tool gets those that it has lost.
        others: Tools other than W&B that follow the run too; by default those that ``MTLBENCH_TRACK`` names.
        mode: ``online``, ``offline`` or ``disabled`` for W&B; by default what `wandb_mode` says.

    Attributes:
        mode: How W&B follows the run. Offline after any trouble with a server.
        lost: Whether W&B failed after the run had begun, so that the server may have a part of it.
        failed: Tools that failed.
    """

    def __init__(
        self,
        about: About,
        folder: Path,
        *,
        active: bool = True,
        history: Sequence[Mapping[str, Any]] = (),
        others: Sequence[str] | None = None,
        mode: str = "",
    ):
        self._sinks: dict[str, Sink] = {}
        self.lost, self.failed = False, set[str]()
        self.mode = (mode or wandb_mode()) if active else "disabled"
        if active:
            self._open_wandb(about, folder)
            for name in wanted() if others is None else others:
                self._guarded(name, partial(self._open, name, SINKS[name].start, about, folder))
        for row in history:
            self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row, which has a ``step``."""
        values = {key: value for key, value in row.items() if key != "step"}
        for name, sink in list(self._sinks.items()):
            self._guarded(name, partial(sink.log, row["step"], values))

    def finish(self, ending: Ending) -> None:
        """Pass on what the run leaves behind, and end it, also where that failed."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, partial(sink.finish, ending), keep=True)
        self.close(0)

    def close(self, code: int = 1) -> None:
        """End the run in every tool, if it has not ended: without success, unless ``code`` is 0."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, partial(sink.close, code))
        self._sinks.clear()

    def _open_wandb(self, about: About, folder: Path) -> None:
        if self.mode == "online" and (reason := unreachable()):
            print(f"W&B: {server()} does not answer: {reason}. It goes on offline; `mtlbench sync` sends it later.")
            self.mode = "offline"

        def start(about: About, folder: Path) -> Sink:
            return WandbRun(about, folder, self.mode)

        opened = partial(self._open, WANDB, start, about, folder)
        if self.mode == "online" and not self._guarded(WANDB, opened, "It goes on offline; `mtlbench sync` sends it."):
            self._guarded(WANDB, forget_service)
        if self.mode == "offline":
            self._guarded(WANDB, opened)

    def _open(self, name: str, start: Callable[[About, Path], Sink], about: About, folder: Path) -> None:
        self._sinks[name] = start(about, folder)

    def _guarded(
        self,
        name: str,
        action: Callable[[], Any],
        then: str = "The run's own records are complete.",
        *,
        keep: bool = False,
    ) -> bool:
        try:
            action()
        except Exception as error:
            print(f"{name} tracking {'fell short' if keep else 'stopped'}: {type(error).__name__}: {error}. {then}")
            self.failed.add(name)
            if name == WANDB:
                self.lost |= name in self._sinks
                self.mode = "offline" if self.mode == "online" else self.mode
            if not keep:
                self._sinks.pop(name, None)
            return False
        return True
