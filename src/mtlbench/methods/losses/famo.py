"""FAMO: adapts task weights to the decrease of each loss, at a cost that does not grow with the tasks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError


class FAMO(Balancer):
    """Fast adaptive multitask optimization (https://arxiv.org/abs/2306.03792, NeurIPS 2023).

    Rule: z = softmax(w), D_i = L_i - b_i + 1e-8, L = T · Σ_i z_i ln D_i / κ with κ = Σ_i z_i / D_i held fixed. After
    the step, with the losses L' of the same batch: δ_i = ln D_i - ln D'_i, and Adam moves w along J_softmaxᵀ δ.

    Symbols: w logits (T,), b lower bound of the losses, D' the D of L'.

    Args:
        lr: Rate of Adam on w, above 0; the paper uses 0.025.
        weight_decay: Decay of w, at least 0; the paper's runs use 0.001 (NYU-v2), the code's default is 0.01.
        lower_bound: b for every task, at least 0; the paper uses 0. Every loss must stay above it, because the rule
            takes ln(L_i - b_i).

    Differences from the official code: the factor T puts the rule on sum scale; clipping is the suite's
    (``trainer.clip``), not the method's; under accumulation the last micro-batch is evaluated again.
    The second forward pass changes neither BatchNorm statistics nor the state of random generators.

    Example:
        >>> import torch
        >>> FAMO().direction(torch.eye(2), losses=torch.tensor([1.0, 2.0]))
        tensor([1.3333, 0.6667])
    """

    TAXONOMY = "optimisation/loss weighting/by learning speed"
    SEARCH = {"lr": [0.005, 0.025, 0.1], "weight_decay": [0.001, 0.01]}
    POSITIVE = True

    logits: Tensor

    def __init__(self, lr: float = 0.025, weight_decay: float = 0.001, lower_bound: float = 0.0):
        super().__init__()
        if not 0 < lr < math.inf:
            raise MethodError(f"famo: lr must be above 0 and finite. Found {lr}. The default is 0.025.")
        for name, value in (("weight_decay", weight_decay), ("lower_bound", lower_bound)):
            if not 0 <= value < math.inf:
                raise MethodError(f"famo: {name} must be at least 0 and finite. Found {value}.")
        self.lr, self.weight_decay, self.lower_bound = lr, weight_decay, lower_bound
        self.floor = lower_bound

    def configure(self, tasks: int) -> None:
        """Creates the logits, which the run's optimiser does not train, and their own Adam."""
        super().configure(tasks)
        self.register_buffer("logits", torch.zeros(tasks))
        self._adam = torch.optim.Adam([self.logits], lr=self.lr, weight_decay=self.weight_decay)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the scaled sum of log losses (A,) → ()."""
        distance = self._distance(losses)
        z = torch.softmax(self.logits[ctx.index(self.logits)], 0).to(losses)
        scale = (z / distance).sum().detach()
        self._before = distance.detach().log()
        return len(losses) * (z * distance.log() / scale).sum()

    def after_step(self, ctx: Context) -> None:
        """Moves the logits: a task whose loss fell faster than the others loses weight."""
        active = ctx.index(self.logits)
        if len(self._before) != len(ctx.active):
            return  # The last micro-batch has other tasks than the step, so losses cannot be compared.
        delta = self._before - self._distance(ctx.lookahead(None)).log()
        delta = delta.nan_to_num(0.0).to(self.logits)  # NaN means that a task has no label in the last micro-batch.
        z = torch.softmax(self.logits[active], 0)
        if self._adam.param_groups[0]["params"][0] is not self.logits:
            self._rebind()  # Moving a module to another device replaces its buffers.
        self.logits.grad = torch.zeros_like(self.logits)
        self.logits.grad[active] = z * (delta - (z * delta).sum())
        self._adam.step()
        self.logits.grad = None

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the state of Adam, so that a resumed run continues exactly."""
        return self._adam.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the state of Adam."""
        self._rebind()
        self._adam.load_state_dict(state)

    def _rebind(self) -> None:
        state = self._adam.state_dict()
        self._adam = torch.optim.Adam([self.logits], lr=self.lr, weight_decay=self.weight_decay)
        self._adam.load_state_dict(state)

    def _distance(self, losses: Tensor) -> Tensor:
        return losses - self.lower_bound + 1e-8
