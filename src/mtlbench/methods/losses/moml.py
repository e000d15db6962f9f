"""MOML: learns task weights by multi-objective descent on the losses after a step, task by task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.gradients.rows import gramian
from mtlbench.balancing.rules import solvers
from mtlbench.balancing.rules.adam import TaskAdam
from mtlbench.balancing.rules.scale import known_scale
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.method.bilevel import Bilevel, PartLosses


class MOML(Bilevel):
    """Multi-objective meta learning (https://arxiv.org/abs/2102.07121, NeurIPS 2021).

    Rule: before every step, θ' = θ - η Σ_i s_i ∇L_i(θ; A) with s = softmax(α); a_j = ∂ L_j(θ'; B) / ∂α for every j;
    Adam moves α against the shortest convex combination of the a_j / ‖a_j‖. The step then follows T Σ_i s_i L_i on the
    whole batch.

    Symbols: θ all parameters, heads included; A, B first and second half of the batch; T number of tasks; α is 0 at the
    start. a_j = -η ∇L_j(θ'; B) Gᵀ (diag s - s sᵀ), where the rows of G are the ∇L_i(θ; A).

    Args:
        lr: Learning rate of Adam on α, above 0; LibMTL uses 1e-3.
        inner_lr: η, above 0; LibMTL uses 0.1.
        scale: ``"sum"``: the weights of a step sum to the number of its tasks. ``"mean"``: to 1, as in LibMTL.

    Differences from LibMTL: the inner problem has one step, the only number for which its code is right. The shortest
    combination is exact. The halves are those of the batch of the step, so that every method sees the same samples; a
    task without a label in one of them keeps its α. α moves once per step, on its first micro-batch; if a rank has one
    image only, α stays. A step costs two forward and 2T backward passes more than `uniform`, on half of the batch.

    Example:
        >>> import torch
        >>> products = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)  # F Gᵀ
        >>> hypergradients(products, torch.tensor([0.5, 0.5], dtype=torch.float64), 0.1).tolist()
        [[-0.05, 0.05], [0.075, -0.075]]
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"lr": [1e-4, 1e-3, 1e-2], "inner_lr": [0.01, 0.1]}

    def __init__(self, spec: MethodSpec, *, lr: float = 1e-3, inner_lr: float = 0.1, scale: str = "sum"):
        super().__init__(spec)
        for name, value in (("lr", lr), ("inner_lr", inner_lr)):
            if not 0 < value < float("inf"):
                raise MethodError(f"moml: {name} must be above 0 and finite. Found {value}.")
        self.inner_lr, self.scale = inner_lr, known_scale("moml", scale, ("sum", "mean"))
        self.logits = TaskAdam(torch.zeros(len(self.tasks)), lr)

    def move(self, inner: PartLosses, outer: PartLosses) -> None:
        """Takes one step of Adam on the α of all tasks with a label in both halves."""
        known = [i for i in range(len(self.tasks)) if inner.counts[i] and outer.counts[i]]
        if not known:
            return
        chosen, shares = torch.eye(len(self.tasks))[known], torch.softmax(self.logits.values[known], 0)
        rows = inner.rows(chosen)
        change = [
            -self.inner_lr * sum(share.to(g) * g for share, g in zip(shares, found, strict=True))
            for found in zip(*rows, strict=True)
        ]
        products = gramian(outer.rows(chosen, change), rows).to(shares)
        self.logits.step(common_gradient(hypergradients(products, shares, self.inner_lr)), known)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the weighted sum of (A,) losses."""
        weights = torch.softmax(self.logits.values[list(ctx.active)], 0).to(losses)
        value = (weights * losses).sum()
        return len(losses) * value if self.scale == "sum" else value

    def summary(self) -> dict[str, Any]:
        """Returns the last s of every task."""
        shares = torch.softmax(self.logits.values, 0).tolist()
        return {**super().summary(), "weights": dict(zip(self.tasks, shares, strict=True))}


def hypergradients(products: Tensor, shares: Tensor, rate: float) -> Tensor:
    """Returns the derivatives (A, A) of the losses after a step by α, one loss per row; every row sums to 0.

    Args:
        products: F Gᵀ (A, A): of the gradients after the step with those that it is made of.
        shares: s (A,).
        rate: η.
    """
    return -rate * products @ (shares.diag() - torch.outer(shares, shares))


def common_gradient(rows: Tensor) -> Tensor:
    """Returns the shortest convex combination (A,) of the rows (A, A) scaled to length 1; zero rows stay."""
    norms = rows.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, rows / norms, 0.0)
    weights = solvers.min_norm((unit @ unit.T).cpu().numpy())
    return torch.from_numpy(weights).to(unit) @ unit
