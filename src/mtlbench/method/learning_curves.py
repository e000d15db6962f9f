"""Learning curves of two regimes by Bayesian linear regression, and the choice between them by Thompson sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LearningCurves(nn.Module):
    """Predicts how accurate two regimes will be from what they have reached so far.

    Regime r has reached y after n intervals of its own: y = w_r · φ(n) + noise with
    φ(n) = (1, log(1 + n) / log(1 + N), n / N), where N is the number of all intervals. The prior of w_r is N(0, τ² I).

    Attributes:
        products: (2, 3, 3), sums of φ φᵀ.
        moments: (2, 3), sums of φ y.
        counts: (2,), intervals n of every regime.
    """

    products: Tensor
    moments: Tensor
    counts: Tensor

    def __init__(self, intervals: int, prior: float, noise: float) -> None:
        """Begins without observations.

        Args:
            intervals: N.
            prior: Standard deviation τ of the prior.
            noise: Standard deviation of the noise.
        """
        super().__init__()
        self.intervals, self.prior, self.noise = intervals, prior, noise
        self.register_buffer("products", torch.zeros(2, 3, 3, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(2, 3, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def features(self, n: int) -> Tensor:
        """Returns φ(n), (3,)."""
        whole = self.intervals
        return torch.tensor([1.0, math.log1p(n) / math.log1p(whole), n / whole], dtype=torch.float64)

    def observe(self, regime: int, value: float) -> None:
        """Adds what a regime has reached in its next interval."""
        self.counts[regime] += 1
        row = self.features(int(self.counts[regime])).to(self.products)
        self.products[regime] += torch.outer(row, row)
        self.moments[regime] += value * row

    def posterior(self, regime: int) -> tuple[Tensor, Tensor]:
        """Returns mean (3,) and covariance (3, 3) of w, on the CPU."""
        precision = torch.eye(3, dtype=torch.float64) / self.prior**2
        precision += self.products[regime].double().cpu() / self.noise**2
        covariance = torch.linalg.inv(precision)
        return covariance @ self.moments[regime].double().cpu() / self.noise**2, (covariance + covariance.T) / 2

    def ahead(self, regime: int, weights: Tensor, remaining: int) -> float:
        """Returns the sum of the predicted values of the next intervals if one regime is used in all of them.

        Args:
            regime: The regime.
            weights: w, (3,).
            remaining: Number of intervals.
        """
        n = int(self.counts[regime])
        return float(sum(self.features(n + k) @ weights for k in range(1, remaining + 1)))

    def reached(self, regime: int) -> float:
        """Returns the posterior mean of the present value of a regime."""
        return float(self.features(int(self.counts[regime])) @ self.posterior(regime)[0])

    def sampled(self, remaining: int, generator: torch.Generator) -> tuple[float, float]:
        """Returns for both regimes the sum over the next intervals under a draw of w from its posterior."""
        values = []
        for regime in (0, 1):
            mean, covariance = self.posterior(regime)
            draw = torch.randn(3, generator=generator, dtype=torch.float64)
            values.append(self.ahead(regime, mean + torch.linalg.cholesky(covariance) @ draw, remaining))
        return values[0], values[1]
