"""COSMOS: a weighted sum under random preferences that rewards losses in proportion to them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale
from mtlbench.balancing.rules.torchjd import COSMOS as Scalariser
from mtlbench.errors import MethodError


class COSMOS(Balancer):
    """Scalable Pareto front approximation (https://arxiv.org/abs/2103.13392, ICDM 2021).

    Rule: L = A (Σ_i r_i L_i - λ cos(r, L)), r ~ Dirichlet(α, …, α), drawn in every optimiser step.

    Symbols: r preferences, positive and of sum 1; L vector of the losses of the A tasks with a label in the step.

    Args:
        lambda_: λ, at least 0; the paper uses 0.01 to 8, depending on the data. The default is ours.
        concentration: α, above 0: large values draw preferences near 1 / A, small ones near a single task. The
            default, uniform draws, is ours.
        scale: ``"sum"``: with the factor A, so that without the cosine the weights sum to A. ``"raw"``: without it, as
            in the paper.

    Differences from the paper: the network does not see r. The paper concatenates it to the input and so learns one
    network for all preferences; here r is only a random weighting with a penalty. The factor A. The cosine is
    TorchJD's. Its derivative may make weights negative.

    Example:
        >>> import torch
        >>> drawn = COSMOS().direction(torch.eye(2), losses=torch.tensor([1.0, 2.0]), seed=1)
        >>> drawn.tolist() == COSMOS().direction(torch.eye(2), losses=torch.tensor([1.0, 2.0]), seed=2).tolist()
        False
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"lambda_": [0.01, 0.1, 1.0, 8.0]}

    def __init__(self, lambda_: float = 1.0, concentration: float = 1.0, scale: str = "sum"):
        super().__init__()
        if not 0 <= lambda_ < float("inf"):
            raise MethodError(f"cosmos: lambda_ must be at least 0 and finite. Found {lambda_}. The default is 1.")
        if not 0 < concentration < float("inf"):
            raise MethodError(f"cosmos: concentration must be above 0 and finite. Found {concentration}.")
        self.lambda_, self.concentration, self.scale = lambda_, concentration, known_scale("cosmos", scale)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the sum of (A,) losses under this step's preferences minus the reward."""
        value = Scalariser(self.lambda_, self._preferences(ctx).to(losses))(losses)
        return len(losses) * value if self.scale == "sum" else value

    def _preferences(self, ctx: Context) -> Tensor:
        """Returns the draw (A,): a part of one for all tasks of the run, so that ranks and micro-batches agree."""
        seed = int(torch.randint(2**62, (), generator=ctx.generator))
        drawn = np.random.default_rng(seed).gamma(self.concentration, size=self.tasks)[list(ctx.active)]
        drawn = np.maximum(drawn, np.finfo(np.float64).tiny)  # Draws of a small concentration may all vanish.
        return torch.from_numpy(drawn / drawn.sum())
