"""IT-MTL: follows in every step the set of tasks whose joint update reduces the losses of all tasks most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.probe import PairMeans, checked_preview, relative_decrease, trial_step


class ITMTL(PairMeans, Balancer):
    """Increased-transfer multi-task learning (https://arxiv.org/abs/2010.15413, 2020).

    Rule: among candidate sets J of tasks, take the one of largest Σ_j Z_{J→j}; d = Σ_{i ∈ J} g_i. Here
    Z_{J→j} = 1 - L_j(θ + Δ_J, φ_j) / L_j(θ, φ_j) on the batch of the step. Equal sums, up to rounding, go to all tasks.

    Symbols: θ shared parameters, φ_j those of task j alone, g_i gradient of task i, η the present learning rate;
    Δ_J = -η Σ_{i ∈ J} g_i, or the step that ``preview`` names.

    The candidates are every task alone, all but one, and all: 2T + 1 sets from T = 3 on, so a step costs 2T + 2 forward
    and T backward passes.

    Args:
        preview: ``"gradient"``: Δ_J as above, where a parameter with a rate of its own moves at that rate.
            ``"optimiser"``: the change that the run's optimiser would make for Σ_{i ∈ J} g_i, with its momentum and
            weight decay.

    Differences from the paper: its list of candidates is unverified. Heads always get the gradient of their own task,
    whether it is in J or not. Only tasks with a label in the step take part; a task whose loss is 0, or that has no
    label in the last micro-batch, does not affect the choice. The summary counts under ``chosen`` how often ``all``,
    ``only`` each task, and all ``without`` each task were chosen. Its ``affinity[j][i]`` is the mean of Z_{{i}→j} over
    all steps that had a value, which are counted in ``probes``.

    Example:
        >>> import torch
        >>> targets = torch.tensor([[1.0], [-2.0]])
        >>> def losses(x):
        ...     return (x - targets).square().sum(1) / 2
        >>> rule = ITMTL()
        >>> rule.direction(-targets, losses(torch.zeros(1)), lookahead=losses, lr=0.1)
        tensor([-1.])
        >>> rule.summary()["chosen"]
        {'all': 0, 'only': [1, 0], 'without': [0, 0]}
    """

    VERSION = 2  # 2: the paper's plain step is the default.
    TAXONOMY = "optimisation/task scheduling"

    chosen: Tensor

    def __init__(self, preview: str = "gradient"):
        super().__init__()
        self.preview = checked_preview("it_mtl", preview)

    def configure(self, tasks: int) -> None:
        """Creates the counters: all tasks, each task only, and all but each; and those of pairs."""
        super().configure(tasks)
        self.begin_pairs(tasks)
        self.register_buffer("chosen", torch.zeros(2 * tasks + 1, dtype=torch.int64))

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the sum (P,) of the rows of the (A, P) Jacobian that belong to the best set."""
        sets = candidates(len(jacobian)).to(jacobian)
        best = self._best(sets, jacobian, ctx) if len(sets) > 1 else torch.zeros(1, dtype=torch.int64)
        only = [1 + i for i in ctx.active]
        slots = torch.tensor([0, *only, *(self.tasks + i for i in only)], device=best.device)[best]
        self.chosen.index_add_(0, slots.to(self.chosen.device), torch.ones_like(self.chosen[:1]))
        return (sets[best.to(sets.device)] @ jacobian)[0]

    def _best(self, sets: Tensor, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the index (1,) of the best of the sets (K, A), or the first of equals, without a wait of the host."""
        before = ctx.lookahead(None)
        told = before.isfinite() & (before != 0)
        steps = (trial_step(ctx, each @ jacobian, self.preview) for each in sets)
        gains = torch.stack([relative_decrease(before, ctx.lookahead(step)) for step in steps])
        alone = slice(1, 1 + len(jacobian))  # See `candidates`.
        self.note(gains[alone].T, ctx.active)
        total = torch.where(told, gains, 0.0).nan_to_num(nan=-torch.inf).sum(1)
        slack = 4 * len(before) * torch.finfo(total.dtype).eps
        return (total >= total.max() - slack).to(torch.int8).argmax(0, keepdim=True)

    def summary(self) -> dict[str, Any]:
        """Returns how often each set was chosen, by the index of the task, and the mean transference of pairs."""
        every, *rest = self.chosen.tolist()
        chosen = {"all": every, "only": rest[: self.tasks], "without": rest[self.tasks :]}
        return {"chosen": chosen, **self.pairs()}


def candidates(count: int) -> Tensor:
    """Returns the distinct candidate sets (K, count) of 0 and 1: all tasks, each alone, and all without each."""
    alone = torch.eye(count)
    return torch.cat([torch.ones(1, count), alone, 1 - alone][:count])
