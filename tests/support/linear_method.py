"""Methods on a network of linear layers, whose FLOPs and parameters are counted by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Context
from mtlbench.errors import MethodError
from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.flops import counting

LINEAR = __name__
PIXELS = 3 * 16 * 24
WIDTH = 5
TASKS = ["kind", "mean"]
CHANNELS = 3 + 1
BATCH = 8


def by_hand(backward_passes: float = 1, forward_passes: float = 1) -> float:
    """Returns the FLOPs of one step; pixels need no gradient, so the shared layer has one product per backward pass."""
    shared, heads = 2 * BATCH * PIXELS * WIDTH, 2 * BATCH * WIDTH * CHANNELS
    return shared * (forward_passes + backward_passes) + heads * (forward_passes + 2)


class LinearNetwork(MTLNetwork):
    """One shared layer, PIXELS → WIDTH, and one layer per task, WIDTH → C; no biases."""

    def __init__(self, tasks) -> None:
        super().__init__()
        self.shared = nn.Linear(PIXELS, WIDTH, bias=False)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, task.channels, bias=False) for name, task in tasks.items()})

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        shared = self.shared(image.flatten(1).to(self.shared.weight.dtype) / 255)
        return Outputs({name: self.heads[name](shared) for name in tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.heads[task]]


class Plain(MTLMethod):
    """The plain sum."""

    def build_network(self) -> MTLNetwork:
        return LinearNetwork(self.tasks)


class OneByOne(Plain):
    """The plain sum of gradients, each from its own backward pass."""

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        return jacobian.sum(0)


class Looks(Plain):
    """Looks at the losses after every step, with one more forward pass."""

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.network(self._state.batch["image"], list(self.tasks))


class EveryThird(Plain):
    """Looks so in every third step alone, and says so."""

    def phase(self, step: int) -> str:
        return "looks" if step % 3 == 0 else "plain"

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._state.step % 3 == 0:
            with torch.no_grad():
                self.network(self._state.batch["image"], list(self.tasks))


class Prepares(Plain):
    """Looks at three batches before its first step, at fewer in a shorter run, and says what that took."""

    WANTED = 3

    def on_train_start(self) -> None:
        super().on_train_start()
        with counting(self.network) as counter, torch.no_grad():
            for batch in itertools.islice(self.trainer.datamodule.train_dataloader(), self.WANTED):
                self.network(batch["image"], list(self.tasks))
        self._prepared = counter.flops

    def preparation_flops(self) -> int:
        return self._prepared


class Slow(Plain):
    """Takes 50 ms more per step."""

    def training_step(self, batch, batch_idx) -> Tensor:
        time.sleep(0.05)
        return super().training_step(batch, batch_idx)


class Breaks(Plain):
    """Fails in its second step."""

    def training_step(self, batch, batch_idx) -> Tensor:
        if batch_idx:
            raise MethodError("It fails in its second step.")
        return super().training_step(batch, batch_idx)


class Unbuildable(Plain):
    """Has no network."""

    def build_network(self) -> MTLNetwork:
        raise MethodError("It cannot be built.")
