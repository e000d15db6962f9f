"""HydaLearn: weights each task by how much its own step would help the main task on the current batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.probe import PairMeans, checked_preview, relative_decrease, trial_step
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod

DEFAULT_MAIN = "semseg"


class HydaLearn(PairMeans, MTLMethod):
    """Highly dynamic task weighting (https://arxiv.org/abs/2008.11643, 2020).

    Rule: δ_i = 1 - L_m(θ + Δ_i, φ_m) / L_m(θ, φ_m) on the batch of the step for the main task m;
    w_i = T max(δ_i, 0) / Σ_j max(δ_j, 0), then w_m is raised to w_min and the others are scaled so that Σ w = T;
    d = Σ w_i g_i. If no δ_i is above 0 all weights are 1.

    Symbols: θ shared parameters, φ_m those of task m alone, g_i gradient of task i, η the present learning rate,
    Δ_i = -η g_i, or the step that ``preview`` names; T number of tasks with a label.

    Args:
        main: Name of the main task m; ``""`` for ``semseg`` where there is one, else the first task of the run; or
            ``"all"``, an extension of ours: δ_i is the mean over all tasks m, and w_min has no part in it.
        w_min: Smallest weight of the main task, in [0, 1]. The default is ours, as the paper's value is unknown to us.
        preview: ``"gradient"``: Δ_i = -η g_i, where a parameter with a rate of its own moves at that rate.
            ``"optimiser"``: the change that the run's optimiser would make for g_i alone, with its momentum and weight
            decay.

    Differences from the official code: there is none to compare with, and only the ratio w_i / w_j = δ_i / δ_j is known
    from the paper. The gain is the relative decrease of the loss on the training batch, not a metric on held-out data.
    Heads get the gradient of their own task with weight 1, so that the head of a task of weight 0 still trains. If the
    main task has no label in a step, all weights are 1. A step costs T backward passes, and T forward passes
    through the head of the main task.

    The summary holds the mean weights and, as ``affinity[m][i]``, the mean of δ_i for each main task m; ``all`` fills
    every row.

    Example:
        >>> from mtlbench.balancing.rules.probe import relative_decrease
        >>> import torch
        >>> gains = relative_decrease(torch.tensor(0.5), torch.tensor([0.405, 0.505, 0.605]))
        >>> task_weights(gains, main=0, w_min=0.1)
        tensor([3., 0., 0.])
    """

    VERSION = 2  # 2: the paper's plain step is the default.
    TAXONOMY = "optimisation/loss weighting/by performance"

    weight_sums: Tensor
    weight_steps: Tensor

    def __init__(self, spec: MethodSpec, *, main: str = "", w_min: float = 0.1, preview: str = "gradient"):
        super().__init__(spec)
        self.preview = checked_preview("hydalearn", preview)
        if not 0 <= w_min <= 1:
            raise MethodError(f"hydalearn: w_min must be in [0, 1]. Found {w_min}. The default is 0.1.")
        names = list(self.tasks)
        if main not in ("", "all", *names):
            raise MethodError(f"hydalearn: {unknown_name('main task', main, ['all', *names])}")
        self.main = main or (DEFAULT_MAIN if DEFAULT_MAIN in names else names[0])
        self.w_min = w_min
        self.register_buffer("weight_sums", torch.zeros(len(names)))
        self.register_buffer("weight_steps", torch.zeros(len(names), dtype=torch.int64))
        self.begin_pairs(len(names))

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Tries the step of each task and returns the weighted sum (P,) of the rows of the (A, P) Jacobian."""
        mains = [i for i in ctx.active if self.main in ("all", list(self.tasks)[i])]
        weights = self._weights(jacobian, mains, ctx) if mains else torch.ones_like(ctx.losses)
        place = torch.tensor(ctx.active, device=self.weight_sums.device)
        self.weight_sums.index_add_(0, place, weights.to(self.weight_sums))
        self.weight_steps.index_add_(0, place, torch.ones_like(place))
        return weights.to(jacobian) @ jacobian

    def _weights(self, jacobian: Tensor, mains: list[int], ctx: Context) -> Tensor:
        """Returns weights (A,) by what the step of each task does to the losses of the main tasks."""
        before = ctx.lookahead(None, mains)
        steps = (trial_step(ctx, gradient, self.preview) for gradient in jacobian)
        found = relative_decrease(before, torch.stack([ctx.lookahead(step, mains) for step in steps]))
        self.note(found.T, mains, ctx.active)
        gains = found.nan_to_num(0.0, posinf=1.0, neginf=-1.0).mean(1)
        return task_weights(gains, None if self.main == "all" else ctx.active.index(mains[0]), self.w_min)

    def summary(self) -> dict[str, Any]:
        """Returns the main task, the mean weight of every task over the steps in which it had a label, and gains."""
        means = (self.weight_sums.double() / self.weight_steps.clamp(min=1)).tolist()
        return {"main": self.main, "weights": dict(zip(self.tasks, means, strict=True)), **self.pairs()}


def task_weights(gains: Tensor, main: int | None, w_min: float) -> Tensor:
    """Returns weights (A,) that sum to A, in the ratio of the gains (A,) that are above 0; ones if there are none.

    Args:
        gains: What the step of each task gains for the main task; finite.
        main: Position of the main task, or None if there is not one alone.
        w_min: Least weight of the main task, 0..1.
    """
    count, gains = len(gains), gains.clamp(min=0)
    total = gains.sum()
    weights = torch.where(total > 0, count * gains / total, 1.0)
    if main is None:
        return weights
    own = weights[main].clamp(min=w_min)
    others = (count - weights[main]).clamp(min=torch.finfo(weights.dtype).tiny)
    weights = weights * (count - own) / others
    weights[main] = own
    return weights
