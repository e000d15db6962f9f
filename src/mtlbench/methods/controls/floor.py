"""Floor: for every task the best prediction that ignores the input, fitted on the training labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError
from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.constant import ConstantNetwork
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.tasks import Task


class Floor(MTLMethod):
    """What a score is worth: a method that is not better than this has not used the input.

    Rule: ŷ_i = the constant that suits the score of task i on the training labels, at every position of a dense task:
    the mean of numbers, depth and unit vectors; the median where the score is an absolute error; the most frequent
    class; the share of positives of a binary map; for edges that share or one value everywhere, whichever scores
    better.

    The training split is read once, without augmentation. Nothing is trained: the run has 0 steps.

    Differences from the literature: none; such baselines have many names. Each kind of task says what its own is, see
    `Task.blind`.

    Example:
        >>> from mtlbench.registry import find
        >>> find("floor").__name__
        'Floor'
    """

    TAXONOMY = "baseline"

    def build_network(self) -> MTLNetwork:
        """Returns one fixed prediction per task."""
        return ConstantNetwork(self.tasks, self._image_size)

    @property
    def _image_size(self) -> Sequence[int]:
        return self.spec.model.get("image_size", (0, 0))

    def on_fit_start(self) -> None:
        """Fits the predictions, unless they come from a checkpoint."""
        network = cast(ConstantNetwork, self.network)
        if not network.fitted:
            batches = self.trainer.datamodule.fitting_dataloader()  # type: ignore[attr-defined]
            network.settle(fit(self.tasks, batches, self._image_size))

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields one run without steps. Unless labels are cut, which depends on the seed, all seeds share it."""
        trainer = {**spec.trainer, "steps": 0, "evaluate_every": 0, "selection": "last"}
        run = replace(spec, seed=spec.seed if spec.data.get("labels") else 0, trainer=trainer)
        yield [run]
        return dict.fromkeys(spec.tasks, run.run_id)


def fit(tasks: Mapping[str, Task], batches: Iterable[Batch], image_size: Sequence[int]) -> dict[str, Tensor]:
    """Returns the raw prediction of every task, the same on every rank.

    Args:
        tasks: Tasks by name.
        batches: This rank's share of the training split.
        image_size: Height and width of images; (0, 0) if inputs have no pixels.

    Raises:
        MethodError: If a kind of task has none.
    """
    found = {name: task.blind() for name, task in tasks.items()}
    if without := [name for name, blind in found.items() if blind is None]:
        raise MethodError(
            f"The floor needs a kind of task that says how to predict without the image. {', '.join(without)}: "
            f"{type(tasks[without[0]]).__name__}.blind returns None. Define it, or leave the task out of the floor."
        )
    blind = {name: one for name, one in found.items() if one is not None}
    for name, one in blind.items():
        one.frame(*image_size)
        # A rank may have no image at all; a blank label adds nothing but its shape.
        one.update(tasks[name].blank(*image_size)[None])
    for batch in batches:
        for stream in streams(batch):
            for name in stream["targets"].keys() & blind.keys():
                blind[name].update(stream["targets"][name])
    for one in blind.values():
        one.reduce()
    with torch.no_grad():
        return {name: one.prediction() for name, one in blind.items()}
