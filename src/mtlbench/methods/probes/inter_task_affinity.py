"""Inter-task affinity: measures how much the step of one task reduces the loss of another."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.probe import Probe, checked_preview, relative_decrease, trial_step


class InterTaskAffinity(Probe):
    """The measuring run of task affinity groupings, TAG (https://arxiv.org/abs/2109.04617, NeurIPS 2021).

    Rule: training is that of `uniform`. Every few steps Z_{i→j} = 1 - L_j(θ + Δ_i, φ_j) / L_j(θ, φ_j) is found on the
    batch of the step for all i, j; the affinity of i to j is the mean over these steps of Z_{i→j} / η. The summary
    holds it as ``affinity[j][i]``: recipient, then source.

    Symbols: θ shared parameters, φ_j those of task j alone, g_i gradient of task i, η the present learning rate;
    Δ_i = -η g_i, or the step that ``preview`` names.

    Args:
        every: Steps from one measurement to the next; the paper's 10.
        per_lr: Whether Z is divided by η, as in the official code: late steps at a low rate count as much as others.
        preview: ``"gradient"``: Δ_i = -η g_i, the paper's plain step, where a parameter with a rate of its own moves at
            that rate. ``"optimiser"``: the change that the run's optimiser would make for g_i alone, with its momentum
            and weight decay.

    Differences from the official code: it adds weight decay to Δ_i and, for CelebA, the optimiser's momentum; its
    Taskonomy part asks for momentum in a place where it never is. Here, statistics of BatchNorm stay as they are, mixed
    precision measures too, and over ranks gradients are averaged first and losses after. Clipping has no part in Δ_i. A
    value that is not finite (no label, a loss of 0, a rate of 0) is not counted; ``probes`` is the number that were.
    Under accumulation losses are those of the last micro-batch.

    Example:
        >>> import torch
        >>> targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> def losses(x):
        ...     return (x - targets).square().sum(1) / 2
        >>> rule = InterTaskAffinity(per_lr=False)
        >>> rule.direction(-targets, losses(torch.zeros(2)), lookahead=losses, lr=0.1)
        tensor([ 0., -1.])
        >>> [[round(value, 2) for value in row] for row in rule.summary()["affinity"]]
        [[0.19, -0.01, -0.21], [-0.01, 0.19, -0.01], [-0.21, -0.01, 0.19]]
    """

    VERSION = 2  # 2: the paper's plain step is the default.
    TAXONOMY = "relationships/grouping"

    def __init__(self, every: int = 10, per_lr: bool = True, preview: str = "gradient"):
        super().__init__(every)
        self.per_lr, self.preview = per_lr, checked_preview("inter_task_affinity", preview)

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Tries the step of each task and returns the sum (P,) of the rows of the (A, P) Jacobian."""
        if len(jacobian) > 1:  # A single task has no pairs.
            before = ctx.lookahead(None)
            steps = (trial_step(ctx, gradient, self.preview) for gradient in jacobian)
            gains = [relative_decrease(before, ctx.lookahead(step)) for step in steps]
            self.note(torch.stack(gains, 1) / (ctx.lr if self.per_lr else 1.0), ctx.active)
        return jacobian.sum(0)
