"""Gradient Vaccine from Gramians: every pair of gradients is brought to the similarity that it usually has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.errors import MethodError

CEILING = 1 - 1e-6
"""Largest target: a cosine of 1 cannot be reached, and closer values round to it."""

VANISHED = 1e-12
"""Share of ‖g_i‖² below which what is left of a gradient is rounding and has no direction."""


def checked_beta(rule: str, beta: float) -> float:
    """Returns the step of the running similarity.

    Raises:
        MethodError: If it lies outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise MethodError(f"{rule}: beta must lie in [0, 1]. Found {beta}.")
    return beta


def orders(tasks: int, generator: torch.Generator) -> np.ndarray:
    """Returns the other tasks of every task in random order, (A, A-1)."""
    keys = torch.rand(tasks, tasks, dtype=torch.float64, generator=generator).fill_diagonal_(2.0)
    return keys.argsort(1)[:, :-1].numpy()


def vaccinate(gramians: Tensor, targets: Tensor, beta: float, ctx: Context) -> Tensor:
    """Returns the coefficients (L, A) of the original gradients in the sum of the corrected ones.

    Args:
        gramians: (L, A, A), one per group of parameters; all groups take the same orders.
        targets: (L, T, T) running similarities ρ̂, updated in place; absent tasks keep theirs.
        beta: Step of the running similarities.
        ctx: Active tasks, and the source of the orders: one draw.
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
    """Returns coefficients (L, A) and new targets (L, A, A). Row i of the loop is task i, in all groups at once."""
    rows = np.arange(len(order))
    squares = np.diagonal(gramians, axis1=1, axis2=2)
    coefficients = np.broadcast_to(np.eye(len(order)), gramians.shape).copy()  # g'_i = Σ_k c_ik g_k
    products, targets = gramians.copy(), targets.copy()  # ⟨g'_i, g_k⟩
    for other in order.T:
        own, theirs = (coefficients * products).sum(-1), squares[:, other]
        seen = (own > VANISHED * squares) & (theirs > 0)
        own, theirs = np.where(seen, own, 1.0), np.where(seen, theirs, 1.0)
        found = np.clip(products[:, rows, other] / np.sqrt(own * theirs), -1, 1)
        target = targets[:, rows, other]
        aim = np.minimum(target, CEILING)
        unlike = seen & (found < aim)
        sines = np.sqrt(np.divide(1 - found**2, 1 - aim**2, out=np.zeros_like(aim), where=unlike))
        gain = np.where(unlike, np.sqrt(own / theirs) * (aim * sines - found), 0.0)
        coefficients[:, rows, other] += gain
        products += gain[..., None] * gramians[:, other]
        targets[:, rows, other] = np.where(seen, target + beta * (found - target), target)
    return coefficients.sum(1), targets
