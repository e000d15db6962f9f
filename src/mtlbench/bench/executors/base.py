"""The contract of everything that trains runs for a bench: processes of this machine, or the queue of a cluster."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from mtlbench.runs.spec import RunSpec


class Executor(ABC):
    """Starts runs and reports which of them have ended. The bench decides what to start, and how often.

    Rules that hold for every executor:

    - The state of a run is on disk: it is done once its folder holds ``result.json``, and has failed once it holds
      ``error.json``. An exit code is only a hint.
    - A run is worked on by `mtlbench.training.worker.work`, once per rank. Rank zero claims the run's folder and
      renews its lock, so two executors, on one machine or on several, may share a results folder.
    - Any process may be killed at any moment, the bench included. It leaves a checkpoint or nothing, and a later bench
      starts the run again with the same `start`. So an executor keeps no state that is needed after a kill.
    - When the bench ends, its runs stop by themselves with a checkpoint.
    - No method but `wait` and `stop` blocks.
    """

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether another run may start now."""

    @property
    @abstractmethod
    def running(self) -> Sequence[str]:
        """Ids of the runs that were started here and were not yet yielded by `ended`."""

    @abstractmethod
    def start(self, spec: RunSpec) -> None:
        """Starts a run, or resumes it from its newest checkpoint. Called only while `free`.

        Its output is appended to ``logs/<run_id>.log`` of the results folder.
        """

    @abstractmethod
    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        """Yields every run that has ended since the last call, once, with an exit code.

        The code is an `mtlbench.errors.ExitCode`, or the negative number of the signal that killed the run. If one
        rank of several falls, the executor ends the others, which would wait for it indefinitely.
        """

    @abstractmethod
    def stop(self) -> None:
        """Asks every run to write a checkpoint and leave; returns when all have ended, by force after a grace time."""

    def wait(self, seconds: float) -> None:
        """Blocks for so many seconds, or less if a run ends meanwhile and the executor can tell."""
        time.sleep(seconds)
