"""MGDA: the convex combination of the gradients with the smallest norm."""

from __future__ import annotations

from mtlbench.balancing.rules.min_norm import MinNorm


class MGDA(MinNorm):
    """Multi-task learning as multi-objective optimization (https://arxiv.org/abs/1810.04650, NeurIPS 2018).

    Rule: d = Σ_i w_i g_i / n_i, where w minimises ‖Σ_i w_i g_i / n_i‖ over w ≥ 0, Σ_i w_i = 1.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; n_i the divisor
    chosen by ``normalise``. d is a descent direction of every task, ⟨g_i / n_i, d⟩ ≥ ‖d‖², and zero exactly if no such
    direction exists.

    Args:
        normalise: ``"none"`` (n_i = 1, the paper's rule), ``"l2"`` (‖g_i‖), ``"loss"`` (L_i) or ``"loss+"``
            (L_i ‖g_i‖). Weights are those of the original gradients, w_i / n_i, and sum to 1 only with ``"none"``.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code: w is exact, found by an active set, instead of by Frank-Wolfe iterations, of
    which hundreds are needed near a face of the simplex. With ``normalise`` the official code applies w to the original
    losses, so d may increase the loss of a task; here, as in LibMTL, d is the shortest vector itself. If one gradient
    is zero, so is d. If several w give the shortest vector (equal gradients), w is one of them.

    Example:
        >>> import torch
        >>> MGDA(scale="mean").direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2000, 0.4000])
    """

    TAXONOMY = "optimisation/multi-objective"
