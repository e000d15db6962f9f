"""Starts commands in processes that have imported torch already, which takes seconds otherwise, twice per command."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import selectors
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

PRELOAD = ["mtlbench.training.worker"]
"""What the executor preloads, too: both use one server per process."""


class Command:
    """A command in a process group of its own, forked from the server that the tests' ranks come from.

    Its process imports nothing anew, and the server from which it forks its runs is a fork of itself. Everything else
    is as if ``python -m MODULE`` had been started: signals, output, exit code, and who descends from whom.

    Args:
        folder: Its current folder.
        words: Its arguments.
        environment: Variables to set, or to remove where None. OMP_NUM_THREADS is 1 in any case.
        module: What is run.
    """

    def __init__(
        self, folder: Path, words: Sequence[str], environment: Mapping[str, str | None], module: str = "mtlbench.cli"
    ) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._output, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_become, args=(str(folder), module, list(words), environment, theirs))
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        return self._process.exitcode

    def ended(self, seconds: float) -> tuple[int, str]:
        """Waits until no process writes to the output any more; returns exit code and output."""
        parts, limit = [], time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self._output, selectors.EVENT_READ)
            while True:
                if not ready.select(max(0.0, limit - time.monotonic())):
                    raise TimeoutError(f"no end within {seconds} s: {b''.join(parts).decode()}")
                if not (part := os.read(self._output.fileno(), 65536)):
                    break
                parts.append(part)
        self._output.close()
        self._process.join()
        return self._process.exitcode, b"".join(parts).decode()


def _become(folder: str, module: str, words: list[str], environment: Mapping[str, str | None], output: Any) -> None:
    """Turns this process into the command."""
    os.setsid()
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    torch.set_num_threads(1)  # A new interpreter would read OMP_NUM_THREADS, which torch has read already.
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    # What was a file that can be rewound is a pipe now.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _own_server()
    sys.path[0] = folder
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _own_server() -> None:
    """Starts a server of this process for its runs, instead of the one that it was forked from."""
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    server._inherited_fds = None
    server.set_forkserver_preload(PRELOAD)
    with mock.patch("multiprocessing.util.spawnv_passfds", _forked):
        server.ensure_running()


def _forked(path: Any, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """Forks a process that runs the program of ``python -c``, where a new interpreter would be started."""
    pid = os.fork()
    if pid:
        return pid
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    try:
        exec(arguments[-1], {})
    finally:
        os._exit(0)
