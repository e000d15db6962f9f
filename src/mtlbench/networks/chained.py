"""Heads in a chain: the probability of a task is that of the task before it, times that of its own head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import full_precision
from mtlbench.networks.dense import DenseNetwork
from mtlbench.tasks import Task


class ChainedNetwork(DenseNetwork):
    """A dense network in which some tasks of two classes form a chain.

    Heads of the chain other than the last one serve several tasks, so their parameters are shared.
    """

    def __init__(self, tasks: Mapping[str, Task], *, chain: Sequence[str], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            chain: Tasks of two classes, each of which can only hold where the one before it does.
            model: The keys of a suite's ``model`` section; see `Model`.
        """
        super().__init__(tasks, **model)
        self.chain = list(chain)

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        shared = self.shared_map(inputs)
        found = {task: self.heads[task](shared) for task in tasks if task not in self.chain}
        reached = max((self.chain.index(task) for task in tasks if task in self.chain), default=-1)
        logits = [full_precision(self.heads[task](shared)) for task in self.chain[: reached + 1]]
        if logits:
            joint = F.logsigmoid(torch.stack([scores[:, 1] - scores[:, 0] for scores in logits])).cumsum(0)
            found |= dict(zip(self.chain, map(_as_scores, joint), strict=False))
        return Outputs({task: found[task] for task in tasks}, shared)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, unless later tasks of the chain read it, too."""
        return [] if task in self.chain[:-1] else [self.heads[task]]


def _as_scores(log_probability: Tensor) -> Tensor:
    """Returns log(1 − p) and log p (B, 2), whose softmax is (1 − p, p)."""
    # Where p rounds to 1, log(1 − p) would be infinite.
    bounded = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    return torch.stack([torch.log(-torch.expm1(bounded)), log_probability], 1)
