"""Gradient Vaccine on Gramians: raises the cosine of each pair of gradients to its running mean."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.errors import MethodError

CEILING = 1 - 1e-6
"""Largest target cosine. A cosine of 1 cannot be reached, and values closer to 1 round to it."""

VANISHED = 1e-12
"""Share of ‖g_i‖² below which a corrected gradient consists of rounding errors and has no direction."""


def checked_beta(rule: str, beta: float) -> float:
    """Returns the step size of the running similarity after checking its range.

    Raises:
        MethodError: If ``beta`` is outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise MethodError(f"{rule}: beta must be in [0, 1]. Found {beta}. Use 0.5, the default.")
    return beta


def orders(tasks: int, generator: torch.Generator) -> np.ndarray:
    """Returns the other tasks of every task in random order, (A, A-1)."""
    # Sorting random keys permutes every row at once. The key 2 moves each task to the end of its own row.
    keys = torch.rand(tasks, tasks, dtype=torch.float64, generator=generator).fill_diagonal_(2.0)
    return keys.argsort(1)[:, :-1].numpy()


def vaccinate(gramians: Tensor, targets: Tensor, beta: float, ctx: Context) -> Tensor:
    """Returns the coefficients (L, A) of the original gradients in the sum of the corrected ones.

    Args:
        gramians: (L, A, A), one per group of parameters. All groups use the same orders.
        targets: (L, T, T) running similarities ρ̂, updated in place. Those of absent tasks do not change.
        beta: Step size of the running similarities.
        ctx: Active tasks, and the generator of the orders, which is used once.
    """
    index = torch.tensor(ctx.active, device=targets.device)
    pairs = (slice(None), index[:, None], index)
    before = targets[pairs].double().cpu().numpy()
    order = orders(len(ctx.active), ctx.generator)
    weights, after = _corrected(gramians.double().cpu().numpy(), before, beta, order)
    targets[pairs] = torch.from_numpy(after).to(targets)
    return torch.from_numpy(weights)


def _corrected(
    gramians: np.ndarray, targets: np.ndarray, beta: float, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coefficients (L, A) and new targets (L, A, A). Each iteration corrects all tasks and groups at once."""
    rows = np.arange(len(order))
    squares = np.diagonal(gramians, axis1=1, axis2=2)
    coefficients = np.broadcast_to(np.eye(len(order)), gramians.shape).copy()  # g'_i = Σ_k c_ik g_k
    products, targets = gramians.copy(), targets.copy()  # ⟨g'_i, g_k⟩
    for other in order.T:
        # ‖g'_i‖² = Σ_k c_ik ⟨g'_i, g_k⟩, so the corrected gradients themselves are never formed.
        own, theirs = (coefficients * products).sum(-1), squares[:, other]
        seen = (own > VANISHED * squares) & (theirs > 0)
        own, theirs = np.where(seen, own, 1.0), np.where(seen, theirs, 1.0)
        found = np.clip(products[:, rows, other] / np.sqrt(own * theirs), -1, 1)
        target = targets[:, rows, other]
        aim = np.minimum(target, CEILING)
        unlike = seen & (found < aim)
        # The ratio sin(found) / sin(aim) is computed only where it is used, because an aim of -1 has a sine of 0.
        sines = np.sqrt(np.divide(1 - found**2, 1 - aim**2, out=np.zeros_like(aim), where=unlike))
        gain = np.where(unlike, np.sqrt(own / theirs) * (aim * sines - found), 0.0)
        coefficients[:, rows, other] += gain
        products += gain[..., None] * gramians[:, other]
        targets[:, rows, other] = np.where(seen, target + beta * (found - target), target)
    return coefficients.sum(1), targets
