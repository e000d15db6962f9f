"""Run one rank of one run in this process, from start to exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mtlbench.errors import DataError, ExitCode, MtlbenchError, StoreError, inert_output
from mtlbench.networks.dense import build_dense  # noqa: F401 - preloaded, so that forked runs need not import it
from mtlbench.runs.liveness import born
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_json
from mtlbench.training.callbacks import EndOfStep
from mtlbench.training.heartbeat import Heartbeat
from mtlbench.training.malloc import keep_freed_memory
from mtlbench.training.run import train


@dataclass(frozen=True)
class Seat:
    """Place of a process among the ranks of a run.

    Attributes:
        rank: Its number among all ranks.
        world: Number of ranks.
        port: Where rank zero listens.
        threads: Threads of the process; 0 for what torch chooses.
        parent: Process without which the run ends; 0 for none.
        nodes: Number of nodes that the ranks are spread over evenly, in order.
        address: Of the node of rank zero.
    """

    rank: int = 0
    world: int = 1
    port: int = 0
    threads: int = 0
    parent: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"


def work(root: str, record: Mapping[str, Any], seat: Seat) -> ExitCode:
    """Run one rank of one run to its end and return how it ended.

    The outcome is on disk afterwards: ``result.json``, ``error.json``, or a checkpoint to resume from.
    """
    spec = RunSpec.from_json(record)
    folder = RunFolder(Path(root), spec.run_id)
    asked: list[int] = []

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda signum, frame: asked.append(signum))

    listen()
    keep_freed_memory()
    if seat.threads:
        torch.set_num_threads(seat.threads)
    if seat.world > 1:
        _join_ranks(seat)
    beat = None
    try:
        if seat.rank == 0:
            if not folder.claim(spec):
                return ExitCode.NOT_OURS
            beat, note = _heart(folder, spec, seat, asked)
        else:
            note = None
        done = train(
            spec, folder, world=seat.world, nodes=seat.nodes, stop=lambda: bool(asked), note=note, listen=listen
        )
        return ExitCode.DONE if done else ExitCode.STOPPED
    except SIGTERMException:  # Lightning raises it on a signal before the first step, so nothing is lost.
        return ExitCode.STOPPED
    except Exception as error:
        traceback.print_exc()
        if seat.rank == 0 or isinstance(error, MtlbenchError):
            _record_failure(folder, error)
        return ExitCode.FAILED
    finally:
        if beat is not None:
            beat.close()
            if not folder.lost():
                folder.release()


def _heart(
    folder: RunFolder, spec: RunSpec, seat: Seat, asked: list[int]
) -> tuple[Heartbeat, Callable[[EndOfStep], None]]:
    current: list[EndOfStep] = []
    beat = Heartbeat(
        folder,
        lambda: current[0].step if current else 0,
        spec.trainer["steps"],
        lambda: not seat.parent or born(seat.parent) is not None,
        lambda: asked.append(signal.SIGTERM),
    )
    beat.start()
    return beat, current.append


def _join_ranks(seat: Seat) -> None:
    """Set the variables by which Lightning joins ranks that it did not start itself."""
    node, local = divmod(seat.rank, seat.world // seat.nodes)
    os.environ.update(
        MASTER_ADDR=seat.address,
        MASTER_PORT=str(seat.port),
        WORLD_SIZE=str(seat.world),
        NODE_RANK=str(node),
        LOCAL_RANK=str(local),
        RANK=str(seat.rank),
    )


def _record_failure(folder: RunFolder, error: Exception) -> None:
    record = {
        "type": type(error).__name__,
        "message": _message(error),
        "traceback": traceback.format_exc(),
        "time": time.time(),
        "kind": "bad input" if isinstance(error, (DataError, StoreError)) else "error",
    }
    with contextlib.suppress(StoreError, OSError):
        write_json(folder.path / "error.json", record)


def _message(error: Exception) -> str:
    """Returns the message of an error; of one in a loader process, torch's account of it starts with a traceback."""
    text = str(error)
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return text
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() or text


def process(root: str, record: Mapping[str, Any], seat: Seat, log: str) -> None:
    """Entry point of a forked run: write its output to a file and end the process with the exit code of `work`."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if seat.threads:  # Without the variable, Lightning would divide the cores among the ranks of this run alone.
        os.environ["OMP_NUM_THREADS"] = str(seat.threads)
    # Imported modules live until the end. A collection of garbage need not visit their million objects, nor copy them.
    gc.freeze()
    with inert_output():  # People read logs in a terminal.
        code = work(root, record, seat)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a hanging collective on another rank must not keep a finished process alive.
    os._exit(code)
