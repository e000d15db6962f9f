"""Real training steps on demand: trainings that take turns in one process, to compare what a step takes.

A run of `mtlbench.training.run` goes on to its end by itself. Here it advances by as many steps as it is asked for,
without evaluations, checkpoints and diagnostics, and nothing is stored.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mtlbench import registry
from mtlbench.method import MTLMethod
from mtlbench.runs.spec import RunSpec
from mtlbench.training.build import build, build_with_network, switch_on
from mtlbench.training.cost import BEFORE, StepFlops, peak_memory
from mtlbench.training.trainer import build_trainer

COUNTED = 12
"""Steps of the training on which FLOPs are counted."""


class Paced:
    """A training that advances when it is told to, in a thread of its own. Close it, or use it as a context.

    Args:
        spec: The run. Networks of other runs that it reads are fresh ones.
        steps: Steps that it can make in all. Phases and schedule of the method are those of a run of this length.
        counted: Whether FLOPs are counted; times then mean nothing.

    Attributes:
        method: The method, with its trainer.
        flops: FLOPs, if they are counted.
    """

    def __init__(self, spec: RunSpec, steps: int, *, counted: bool = False) -> None:
        self.spec = replace(
            spec,
            trainer={**spec.trainer, "steps": steps, "evaluate_every": 0},
            local={**spec.local, "diagnose_every": 0},
        )
        self.method: MTLMethod
        self.flops = StepFlops() if counted else None
        self.seconds, self.target, self.closed = 0.0, 0, False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        self._wait()

    def advance(self, steps: int) -> float:
        """Makes some steps and returns their seconds, from one wait for the device to the next.

        Raises:
            ValueError: If the training does not have as many steps left.
        """
        if self.target + steps > self.spec.trainer["steps"]:
            raise ValueError(f"A training of {self.spec.trainer['steps']} steps cannot go on to {self.target + steps}.")
        self.target += steps
        self._go.release()
        self._wait()
        return self.seconds

    def close(self) -> None:
        """Ends the training."""
        self.closed = True
        self._go.release()
        self._thread.join()

    def __enter__(self) -> Paced:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def hand_over(self) -> None:
        """Waits until the next steps are wanted; called in the training's own thread."""
        self._stopped.release()
        self._go.acquire()
        if self.closed:
            raise _Closed

    def _wait(self) -> None:
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def _train(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                self.method, data = build_with_network(self.spec)
                _lend_sources(self.method, self.spec)
                switch_on(self.method, self.spec)
                trainer = build_trainer(self.spec, Path(folder), [_Turns(self)], 1, data.batches)
                trainer.fit(self.method, datamodule=data)
        except _Closed:
            pass
        except BaseException as error:  # It belongs to the thread that asked for the steps.
            self._error = error
        self._stopped.release()


class _Closed(Exception):
    """The training is no longer wanted."""


class _Turns(L.Callback):
    """Holds a training at the end of every block of steps."""

    def __init__(self, paced: Paced) -> None:
        self.paced, self.since = paced, 0.0

    def on_train_start(self, trainer: L.Trainer, method: Any) -> None:
        """Waits for the first block."""
        self.paced.hand_over()
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, method: Any, batch: Any, batch_idx: int) -> None:
        """Begins to count."""
        if self.paced.flops is not None:
            self.paced.flops.begin(method, batch, batch_idx)

    def on_train_batch_end(self, trainer: L.Trainer, method: Any, *args: Any) -> None:
        """Ends a block once its last step is done on the device."""
        if self.paced.flops is not None:
            self.paced.flops.end()
        if trainer.global_step < self.paced.target:
            return
        if method.device.type == "cuda":
            torch.cuda.synchronize(method.device)
        self.paced.seconds = time.perf_counter() - self.since
        self.paced.hand_over()
        self.since = time.perf_counter()

    def on_exception(self, trainer: L.Trainer, method: Any, exception: BaseException) -> None:
        """Ends counting."""
        if self.paced.flops is not None:
            self.paced.flops.end()


def phase_flops(spec: RunSpec) -> dict[str, float]:
    """Return the mean FLOPs of a step by phase (see `MTLMethod.phase`), counted on a short training; ``""`` for any.

    The key `BEFORE` is there if the method computes something before its first step.
    """
    with Paced(spec, min(COUNTED, spec.trainer["steps"]), counted=True) as short:
        short.advance(short.spec.trainer["steps"])
    flops, steps = short.flops, range(short.spec.trainer["steps"])
    if flops is None:
        return {}
    phases = {"", *map(short.method.phase, steps)}
    known = {phase: found for phase in phases if (found := flops.per_step(phase)) is not None}
    return {**known, BEFORE: float(flops.before)} if flops.before else known


def preparation_flops(spec: RunSpec, seen: dict[int, int]) -> int:
    """Return the FLOPs of what a run of the length of its specification computes before its first step.

    A run with fewer batches than its preparation wants prepares less. Two lengths that take as much have all they want.

    Args:
        spec: The run.
        seen: FLOPs by number of steps of runs that differ in their length alone; this one is added.
    """
    steps, most = spec.trainer["steps"], max(seen.values(), default=0)
    enough = [length for length, flops in seen.items() if flops == most]
    if len(enough) > 1 and steps >= min(enough):
        return most
    if steps not in seen:
        with Paced(spec, steps, counted=True) as run:
            run.advance(1)
        seen[steps] = run.flops.before if run.flops else 0
    return seen[steps]


def training_flops(
    spec: RunSpec, known: Mapping[str, float] | None = None, prepared: dict[int, int] | None = None
) -> float:
    """Return the FLOPs of a run of the length of its specification.

    Args:
        spec: The run.
        known: What `phase_flops` returned for a run that differs in its length alone; None to count.
        prepared: See ``seen`` of `preparation_flops`; None if nothing is known.
    """
    found, (method, _) = known or phase_flops(spec), build(spec)
    before = preparation_flops(spec, {} if prepared is None else prepared) if BEFORE in found else 0
    return before + sum(found.get(method.phase(step), found[""]) for step in range(spec.trainer["steps"]))


def block(trainings: Iterable[Paced], steps: int) -> list[float]:
    """Advance every training by some steps, one after the other, and return the seconds of each."""
    return [training.advance(steps) for training in trainings]


def pairs(
    ours: Sequence[Paced], reference: Sequence[Paced], count: int, steps: int
) -> list[tuple[list[float], list[float]]]:
    """Time blocks of steps of two rows in turns, after one block each to warm up.

    Args:
        ours: Trainings of the row, timed one by one.
        reference: Trainings of the row that it is compared with.
        count: Number of pairs. Every other one begins with the reference, so that a drift of the machine cancels.
        steps: Steps per block.

    Returns:
        Per pair, the seconds of the blocks of either row's trainings.
    """
    found = []
    for index in range(-1, count):
        if index % 2:
            mine = block(ours, steps)
            theirs = block(reference, steps)
        else:
            theirs = block(reference, steps)
            mine = block(ours, steps)
        found.append((mine, theirs))
    return found[1:]


def peak_of(records: Sequence[dict[str, Any]], threads: int) -> float:
    """Return the largest peak memory in GiB of some runs over three steps each, in a process that does nothing else."""
    torch.set_num_threads(threads)
    for record in records:
        with Paced(RunSpec.from_json(record), 3) as training:
            training.advance(3)
    return peak_memory(cuda=torch.cuda.is_available()) / 2**30


def _lend_sources(method: MTLMethod, spec: RunSpec) -> None:
    """Give a method fresh networks in place of those of other runs, which cost as much to read."""
    if not spec.sources:
        return
    roles = method.roles(list(spec.tasks))
    plain = replace(spec.with_method(registry.record("uniform")), sources=None)
    networks = {role: build_with_network(plain.with_tasks(*tasks))[0].network for role, tasks in roles.items()}
    method.use_sources({role: net.requires_grad_(requires_grad=False).eval() for role, net in networks.items()})
