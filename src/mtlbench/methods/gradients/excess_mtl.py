"""ExcessMTL: raises the weights of tasks that are far from their optimum, estimated from gradient history."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.stateful import MemoryRule
from mtlbench.errors import MethodError

BLOCK = 1 << 16
"""Number of columns processed at a time on a CPU, so that intermediate results stay in the cache."""


class ExcessMTL(MemoryRule):
    """Robust multi-task learning with excess risks (https://proceedings.mlr.press/v235/he24n.html, ICML 2024).

    Rule: S_i ← S_i + g_i²; e_i = Σ g_i² / √(S_i + 10⁻⁷), element-wise; w_i ∝ w_i exp(η e_i / e⁰_i) with Σ w_i = T;
    d = Σ_i w_i g_i.

    Symbols: e_i estimated excess risk of task i; e⁰_i its first value above 0; S (T, P), initially 0; w initially 1.

    Args:
        robust_step_size: η, above 0; 0.01 is LibMTL's default, TorchJD's is 1.
        scale: See `GradientRule`; the rule's own is ``"sum"``.

    Differences from the official code: heads get their own gradients, which are not multiplied by w_i. A task without
    labels keeps w_i and S_i, and the others redistribute their total weight; the weights of a step sum to the number of
    active tasks. As in the official code, the first step, in which all e_i = e⁰_i, does not change w. TorchJD has
    Σ w_i = 1 and uses the raw e_i in the first step; with ``n_warmup_steps=1`` it equals the rule above. Memory and
    every checkpoint hold T × P further numbers.

    Example:
        >>> import torch
        >>> rule = ExcessMTL(robust_step_size=1.0)
        >>> rule.direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
        >>> rule.first
        tensor([1., 2.])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"robust_step_size": [0.001, 0.01, 0.1]}

    first: Tensor
    logits: Tensor

    def __init__(self, robust_step_size: float = 0.01, *, scale: str = "sum"):
        super().__init__(scale=scale)
        if not 0 < robust_step_size < math.inf:
            raise MethodError(f"excess_mtl: robust_step_size must be above 0 and finite. Found {robust_step_size}.")
        self.robust_step_size = robust_step_size

    def configure(self, tasks: int) -> None:
        """Creates S, e⁰ (0 until it is known) and ln w."""
        super().configure(tasks)
        self.register_buffer("first", torch.zeros(tasks))
        self.register_buffer("logits", torch.zeros(tasks))

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian; updates S, e⁰ and w."""
        sums = self.recall(jacobian, self.tasks, jacobian.shape[1])
        excess = torch.stack([_excess(sums[i], row) for i, row in zip(ctx.active, jacobian, strict=True)])
        weights = self.scaled(self._weights(excess.double(), list(ctx.active)), len(jacobian), natural="sum")
        return weights.to(jacobian) @ jacobian

    def _weights(self, excess: Tensor, active: list[int]) -> Tensor:
        """Returns the weights (A,), which sum to A, for the excess risks (A,); updates e⁰ and w."""
        known = self.first[active].to(excess)
        first = torch.where(known > 0, known, excess)
        ratios = (excess / first).nan_to_num(1.0)  # 0 / 0, if there has been no risk yet.
        before = self.logits[active].to(excess)
        after = before + self.robust_step_size * ratios
        # The active tasks keep the total weight that they held before.
        after = after - after.logsumexp(0) + before.logsumexp(0)
        self.first[active] = first.to(self.first)
        self.logits[active] = after.to(self.logits).clamp(min=-1e30)
        return len(active) * torch.softmax(after, 0)


def _excess(sums: Tensor, row: Tensor) -> Tensor:
    """Adds the squares of a gradient (P,) to their sums (P,) in place; returns the excess risk ()."""
    block = BLOCK if row.device.type == "cpu" else max(len(row), 1)
    found = []
    for total, part in zip(sums.split(block), row.split(block), strict=True):
        total.addcmul_(part, part)
        found.append((total + 1e-7).rsqrt_().mul_(part).dot(part))
    return torch.stack(found).sum()
