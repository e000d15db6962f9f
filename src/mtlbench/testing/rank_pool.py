"""A pool of processes that form the ranks of one gloo group, for tests of distributed training on any machine."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from mtlbench.errors import MtlbenchError


class RankError(MtlbenchError):
    """Raised if a function fails on some rank. The message contains that rank's traceback."""


class RankPool:
    """Runs functions on all ranks at once, in processes that stay alive between calls.

    Args:
        world: Number of ranks.
        timeout: Longest duration of one call in seconds.
    """

    def __init__(self, world: int, timeout: float = 300.0):
        self.world, self.timeout = world, timeout
        self._ranks: list[tuple[Any, Any]] = []

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Calls ``function(*args, **kwargs)`` on each rank and returns the results in the order of the ranks.

        Raises:
            RankError: If it failed on some rank or took too long. The next call starts new processes.
        """
        if not self._ranks:
            self._start()
        try:
            for _, pipe in self._ranks:
                pipe.send((function, args, kwargs))
        except OSError as error:
            self.close()
            raise RankError(f"A rank died since the last call: {error}. Call again to start new ranks.") from error
        answers: dict[int, Any] = {}
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), self.timeout)
            for pipe in ready:
                rank = waiting.pop(pipe)
                answers[rank] = self._answer(rank, pipe)
            if not ready:
                self.close()
                raise RankError(
                    f"Ranks {sorted(waiting.values())} did not answer within {self.timeout:.0f} s. Raise `timeout`, or "
                    "check that all ranks enter the same collectives."
                )
        return [answers[rank] for rank in range(self.world)]

    def close(self) -> None:
        """Ends the processes."""
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            pipe.close()
        self._ranks = []

    def _answer(self, rank: int, pipe: Any) -> Any:
        try:
            ok, value = pipe.recv()
        except EOFError:
            ok, value = False, "the process died"
        if not ok:
            # The other ranks may wait indefinitely for this one in a collective, so all are ended.
            self.close()
            raise RankError(f"Rank {rank}: {value}")
        return value

    def _start(self) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mtlbench.training.worker"])
        # The system chooses a free port for the rendezvous.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.world, port), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))


def _serve(pipe: Any, rank: int, world: int, port: int) -> None:
    import torch

    gc.freeze()  # See `mtlbench.training.worker.process`.
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(world),
        NODE_RANK="0",
        LOCAL_RANK=str(rank),
        RANK=str(rank),
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args, **kwargs)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
