"""The heartbeat of a run: renews its lock while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mtlbench.runs.store import RunFolder


class Heartbeat(threading.Thread):
    """Renews a run's lock with its progress until closed, and notices when the run must stop.

    A run must stop if its parent process is gone, or if another process has taken it over.

    Args:
        folder: The run's folder.
        progress: Returns the step.
        steps: Steps of the run.
        parent_alive: Returns whether the process that started this one still lives.
        orphaned: Called once when the run must stop.
    """

    def __init__(
        self,
        folder: RunFolder,
        progress: Callable[[], int],
        steps: int,
        parent_alive: Callable[[], bool],
        orphaned: Callable[[], None],
        period: float = 1.0,
    ):
        super().__init__(daemon=True)
        self.folder, self.progress, self.steps, self.period = folder, progress, steps, period
        self.parent_alive, self.orphaned = parent_alive, orphaned
        self._done = threading.Event()

    def run(self) -> None:
        """Beats until closed."""
        told = False
        while not self._done.wait(self.period):
            lost = self.folder.lost()
            try:
                if not lost:
                    self.folder.beat(step=self.progress(), steps=self.steps)
            except Exception as error:
                print(f"Heartbeat failed: {error}")
            if not told and (lost or not self.parent_alive()):
                told = True
                self.orphaned()

    def close(self) -> None:
        """Stops beating."""
        self._done.set()
        self.join()
