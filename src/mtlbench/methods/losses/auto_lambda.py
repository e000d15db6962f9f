"""Auto-λ: learns task weights by how a step under them changes the losses on other samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.adam import TaskAdam
from mtlbench.balancing.rules.scale import known_scale
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec
from mtlbench.method.bilevel import STEP, Bilevel, PartLosses, rates_of


class AutoLambda(Bilevel):
    """Auto-λ: disentangling dynamic task relationships (https://arxiv.org/abs/2202.03091, TMLR 2022).

    Rule: before every step, θ' = θ - η Σ_i λ_i ∇L_i(θ; A), v = ∇ Σ_{j ∈ P} L_j(θ'; B), and λ takes a step of Adam with
    the gradient ∂_i = -η (L_i(θ + εv; A) - L_i(θ - εv; A)) / 2ε, ε = 0.01 / ‖v‖. The step itself follows Σ_i c_i L_i on
    the whole batch.

    Symbols: θ all parameters, heads included; A, B first and second half of the batch; P primary tasks; η the present
    learning rate of every parameter; c = λ / λ(0), or λ on raw scale.

    Args:
        primary: Names of the tasks P whose scores matter; None for all of them. The others are auxiliary.
        lr: Learning rate of Adam on λ, above 0; the paper uses 1e-4 (3e-5 on CIFAR-100).
        initial: λ(0), above 0; the paper uses 0.1.
        scale: ``"sum"``: the weights start at 1. ``"raw"``: at λ(0), as in the paper.

    Differences from the official code: it takes B from the training set, shuffled anew; here both halves are those of
    the batch of the step, so that every method sees the same samples. θ' is a plain step without momentum and weight
    decay, as in LibMTL. λ is not bounded and may become negative. A step costs two forward passes and one backward pass
    more than `uniform`. λ moves once per step, on its first micro-batch. If a rank has one image only, λ stays.

    Example:
        >>> import torch
        >>> x = torch.tensor(0.5)  # L = ((x - 1)² / 2, (x + 1)² / 2), two weights of 0.1, η = 0.1
        >>> v = (x - 0.1 * (0.1 * (x - 1) + 0.1 * (x + 1))) * 2
        >>> [round((-0.1 * v * (x + s)).item(), 3) for s in (-1, 1)]
        [0.049, -0.147]
    """

    TAXONOMY = "optimisation/loss weighting/by performance"
    SEARCH = {"lr": [3e-5, 1e-4, 1e-3, 1e-2]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        primary: list[str] | None = None,
        lr: float = 1e-4,
        initial: float = 0.1,
        scale: str = "sum",
    ):
        super().__init__(spec)
        for name, value in (("lr", lr), ("initial", initial)):
            if not 0 < value < float("inf"):
                raise MethodError(f"auto_lambda: {name} must be above 0 and finite. Found {value}.")
        names = list(self.tasks)
        for task in primary or []:
            if task not in names:
                raise MethodError(f"auto_lambda: {unknown_name('primary task', task, names)}")
        self.primary = torch.tensor([[float(name in (primary or names)) for name in names]])
        self.initial, self.scale = initial, known_scale("auto_lambda", scale)
        self.weights = TaskAdam(torch.full((len(names),), initial), lr)

    def move(self, inner: PartLosses, outer: PartLosses) -> None:
        """Takes one step of Adam on the λ of all tasks with a label in the first half."""
        rates = rates_of(self.trainer.optimizers[0], inner.parameters)
        gradient = hypergradient(inner, outer, rates, self.weights.values, self.primary)
        known = [i for i, count in enumerate(inner.counts) if count]
        self.weights.step(gradient[known], known)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the weighted sum of (A,) losses."""
        weights = self.weights.values[list(ctx.active)].to(losses)
        value = (weights * losses).sum()
        return value / self.initial if self.scale == "sum" else value

    def summary(self) -> dict[str, Any]:
        """Returns the last λ of every task."""
        return {**super().summary(), "weights": dict(zip(self.tasks, self.weights.values.tolist(), strict=True))}


def hypergradient(
    inner: PartLosses, outer: PartLosses, rates: Sequence[float], weights: Tensor, primary: Tensor
) -> Tensor:
    """Returns the derivative (T,) of the primary losses after one step by the weights, from finite differences.

    Args:
        inner: Losses on the samples of the step.
        outer: Losses on other samples.
        rates: Learning rate of every parameter.
        weights: λ (T,).
        primary: (1, T), 1 for primary tasks and 0 for others.
    """
    (step,) = inner.rows(weights[None])
    (v,) = outer.rows(primary, [-rate * g for rate, g in zip(rates, step, strict=True)])
    along = [rate * g for rate, g in zip(rates, v, strict=True)]
    length = torch.stack([a.double().square().sum() for a in along]).sum().sqrt()
    unit = [a * torch.where(length > 0, STEP / length, 0.0).to(a) for a in along]
    difference = inner.values(unit) - inner.values([-a for a in unit])
    return -difference.double() * length / (2 * STEP)
