"""PBI: the length of the losses along a direction of preference, plus a penalty on their distance from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale
from mtlbench.balancing.rules.torchjd import PBI as Scalariser
from mtlbench.errors import MethodError


class PBI(Balancer):
    """Penalty-based boundary intersection, from MOEA/D (https://doi.org/10.1109/TEVC.2007.892759, 2007).

    Rule: L = κ (d₁ + θ ‖L - z - d₁ ŵ‖) with d₁ = ⟨L - z, ŵ⟩ and ŵ = w / ‖w‖.

    Symbols: L vector of the losses of the A tasks with a label in the step; κ = A / Σ_i ŵ_i.

    Args:
        theta: θ, at least 0. The paper's 5 is the default. 0 is a weighted sum.
        weights: w: one positive number per task of the run, in the order of its tasks; losses are drawn into this
            ratio. None for equal ones.
        reference: z: one number per task, a lower bound of its loss. None for zeros.
        scale: ``"sum"``: with the factor κ, so that losses in the ratio of w have weights of sum A. ``"raw"``: without
            it, as in the paper.

    Differences from the paper: it evolves a population with many w; here there is one. The factor κ. The scalarisation
    is TorchJD's. A task whose loss is far below its share has a *negative* weight, so that its loss is made to grow.

    Example:
        >>> import torch
        >>> PBI(scale="raw").direction(torch.eye(2), losses=torch.tensor([1.0, 2.0]))
        tensor([-2.8284,  4.2426])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"theta": [0.1, 1.0, 5.0]}

    def __init__(
        self,
        theta: float = 5.0,
        weights: list[float] | None = None,
        reference: list[float] | None = None,
        scale: str = "sum",
    ):
        super().__init__()
        if not 0 <= theta < math.inf:
            raise MethodError(f"pbi: theta must be at least 0 and finite. Found {theta}. The default is 5.")
        for name, values, least in (("weights", weights, 0.0), ("reference", reference, -math.inf)):
            if values is not None and not all(isinstance(v, (int, float)) and least < v < math.inf for v in values):
                kind = "positive and " if name == "weights" else ""
                raise MethodError(f"pbi: {name} must be {kind}finite numbers, one per task. Found {values!r}.")
        self.theta, self.given, self.reference = theta, weights, reference
        self.scale = known_scale("pbi", scale)

    def configure(self, tasks: int) -> None:
        """Checks the number of preferences and references.

        Raises:
            MethodError: If there are not as many as tasks.
        """
        super().configure(tasks)
        for name, values in (("weights", self.given), ("reference", self.reference)):
            if values is not None and len(values) != tasks:
                raise MethodError(
                    f"pbi: {name} must hold one number per task of the run, in its order. Found {len(values)} for "
                    f"{tasks}."
                )

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the scalarised (A,) losses."""
        weights = self._of_active(self.given or [1.0] * self.tasks, ctx).to(losses)
        reference = self._of_active(self.reference or [0.0] * self.tasks, ctx).to(losses)
        value = Scalariser(self.theta, weights, reference)(losses)
        return value * (len(losses) * weights.norm() / weights.sum()) if self.scale == "sum" else value

    @staticmethod
    def _of_active(values: list[float], ctx: Context) -> Tensor:
        return torch.tensor([float(values[i]) for i in ctx.active], dtype=torch.float64)
