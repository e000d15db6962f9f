"""Times steps of the training loop and of bare PyTorch alternately in one process, and parses the command line.

Without a GPU, times are CPU times of the process (one thread), so that other load on the machine does not affect them.
On a GPU, they are wall times between waits for the device.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mtlbench.data import Batch, MTLDataModule
from mtlbench.method import MTLMethod
from mtlbench.networks.blocks import full_precision
from mtlbench.runs.spec import RunSpec
from mtlbench.tasks import Task
from mtlbench.training.callbacks import EndOfStep
from mtlbench.training.loggers import MetricsFile
from mtlbench.training.malloc import keep_freed_memory
from mtlbench.training.trainer import build_trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock() -> float:
    """Returns the time in seconds when the device has no work left."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class OneBatch(MTLDataModule):
    """Yields the same batch in every step to exclude loading from the measurement."""

    def __init__(self, tasks: Mapping[str, Task], batch: Batch, steps: int):
        super().__init__(tasks=tasks, batch_size=len(batch["image"]), steps=steps)
        self.batch = batch

    def samples(self, split: str) -> Any:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps, batch_size=1, collate_fn=lambda batches: batches[0])


class Pairs(L.Callback):
    """After every ``block`` steps of Lightning runs as many bare ones of each kind, and notes all times.

    A block of Lightning lasts from the end of one bare block to the start of the next: the whole loop counts.
    """

    def __init__(self, bare: Sequence[Callable[[], None]], block: int, warmup: int = 5):
        self.bare, self.block, self.warmup = bare, block, warmup
        self.seconds: list[tuple[float, ...]] = []
        self._since = 0.0

    def on_train_start(self, *args: Any) -> None:
        self._since = clock()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.block:
            return
        times = [self._since, clock()]
        for step in self.bare:
            for _ in range(self.block):
                step()
            times.append(clock())
        self.seconds.append(tuple((b - a) / self.block for a, b in itertools.pairwise(times)))
        self._since = clock()

    def pairs(self) -> list[tuple[float, ...]]:
        return self.seconds[self.warmup :]


def run_parts(about: str, parts: Mapping[str, Callable[[int], None]]) -> None:
    """Runs the parts of a benchmark that the command line names, or all, on one thread.

    Args:
        about: Docstring of the benchmark.
        parts: What to call, with the number of pairs, by name.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all if none is named")
    parser.add_argument("--pairs", type=int, default=25, help="interleaved blocks of each kind")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(parts):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    for part in given.parts or parts:
        parts[part](given.pairs)


def measure(
    method: MTLMethod,
    batch: Batch,
    *bare: Callable[[], None],
    blocks: int,
    block: int = 1,
    precision: str = "32-true",
) -> list[tuple[float, ...]]:
    """Returns seconds per step of the framework and of each bare loop, for every block after the warm-up."""
    keep_freed_memory()  # as in every run
    pairs = Pairs(bare, block)
    steps = (blocks + pairs.warmup) * block
    data = OneBatch(method.tasks, batch, steps)
    trainer = {"precision": precision, "steps": steps, "accumulate": 1, "clip": 0.0}
    spec = RunSpec("benchmark", "benchmark", 0, {"name": "benchmark"}, {}, {}, {}, {}, trainer)
    with tempfile.TemporaryDirectory() as folder:
        periods = {"log_every": 10, "evaluate_every": 0, "checkpoint_every": 0}
        end = EndOfStep(Path(folder), data, periods, metrics=MetricsFile(Path(folder) / "metrics.jsonl"))
        build_trainer(spec, Path(folder), [end, pairs], 1).fit(method, datamodule=data)
    return pairs.pairs()


def losses_of(
    method: MTLMethod, network: torch.nn.Module, batch: Batch, predictions: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Returns the mean loss of every task: the computation of a step without the framework."""
    found = predictions or network(batch["image"], list(method.tasks)).predictions
    return [
        task.scale * task.loss(full_precision(found[name]), batch["targets"][name]) / max(1, batch["counts"][name])
        for name, task in method.tasks.items()
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Returns median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} (quartiles {low:{form}} to {high:{form}})"
