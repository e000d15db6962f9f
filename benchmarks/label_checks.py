"""Prints what the checks of labels cost beside a step of `scenes`: ``python -m benchmarks.label_checks [pairs]``.

`Collate` checks the form of every target, and its values when a process first sees the sample. Blocks take turns in one
process: the uniform step of suite `scenes`, and stacking its batch with all checks, with those of samples seen before,
and without any. The first block without checks fetches the samples into the cache, as stacking does in a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import torch

from benchmarks.arguments import call
from benchmarks.pairs import measure, spread
from mtlbench import suite as suites
from mtlbench.data import Collate, Sample
from mtlbench.data_modules.scenes import Scenes
from mtlbench.method import MethodSpec
from mtlbench.tasks import Task
from mtlbench.training.build import build_method

BLOCK = 4


class Unchecked(Collate):
    """Stacks and counts, and checks nothing."""

    @staticmethod
    def _stacked(samples: Sequence[Sample], name: str, task: Task, new: Collection[str]) -> torch.Tensor:
        height, width = samples[0]["image"].shape[-2:]
        found = [sample["targets"].get(name) for sample in samples]
        return torch.stack([task.blank(height, width) if target is None else target for target in found])


def main(blocks: int = 100) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    suite = suites.load("scenes", [])
    size, options = suite.trainer.batch_size, suite.data.options
    data = Scenes(size=options["size"], train=options["train"], val=1, test=1, batch_size=size)
    samples = [data.samples("train")[index] for index in range(size)]
    spec = MethodSpec(data.tasks, {**vars(suite.model)}, vars(suite.optimiser), steps=10**6, steps_per_epoch=200)
    method = build_method({"path": "uniform", "arguments": {}}, spec)
    method.configure_model()
    checked, unchecked, numbers = Collate(data.tasks), Unchecked(data.tasks), itertools.count()

    def first() -> None:
        checked([{**sample, "id": str(next(numbers))} for sample in samples])

    def again() -> None:
        checked(samples)

    def without() -> None:
        unchecked(samples)

    batch = unchecked(samples)
    found = measure(method, batch, without, first, again, without, blocks=blocks, block=BLOCK)
    passes = suite.trainer.steps * size / options["train"]
    shares = {
        "samples seen for the first time": [(new - none) / step for step, _, new, _, none in found],
        "samples seen before": [(old - none) / step for step, _, _, old, none in found],
    }
    print("| checks of labels | share of a step, % | ms |\n|---|---|---|")
    for column, (title, values) in enumerate(shares.items(), 2):
        times = [1000 * (row[column] - row[4]) for row in found]
        print(f"| {title} | {spread([100 * value for value in values], '.2f')} | {spread(times, '.3f')} |")
    run = [(new + (passes - 1) * old) / passes for new, old in zip(*shares.values(), strict=True)]
    print(f"| a whole run: {passes:g} passes over the data | {spread([100 * value for value in run], '.2f')} | |")
    step = spread([1000 * row[0] for row in found], ".1f")
    print(
        f"Suite scenes, uniform, batch {size}, step {step} ms; one thread, CPU time, {blocks} interleaved blocks of "
        f"{BLOCK}. Aim: at most 1 % of a step."
    )


if __name__ == "__main__":
    call(main, __doc__)
