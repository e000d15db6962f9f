"""Aligned-MTL: makes the singular values of the Jacobian equal, so that no direction dominates."""

from __future__ import annotations

from mtlbench.balancing.rules.aligned import Aligned


class AlignedMTL(Aligned):
    """Independent component alignment for multi-task learning (https://arxiv.org/abs/2305.19000, CVPR 2023).

    Rule: M = V Λ Vᵀ, B = √σ · V Λ^{-½} Vᵀ over the positive eigenvalues, w = B 1, d = Σ_i w_i g_i. The rows of B G are
    orthogonal and have length √σ. Their sum is d.

    Symbols: M Gramian of the gradients g_i of the tasks with respect to the shared parameters, averaged over all
    ranks; σ the eigenvalue to which all others are set.

    Args:
        alignment: Choice of σ: ``"min"``, the smallest eigenvalue (the paper's), ``"median"``, or ``"rmse"``, the mean.
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`.

    Differences from the official code: the rule is TorchJD's, on sum scale. An eigenvalue counts as 0 if it is below
    T · ε of the largest, where ε is the precision of the losses. In float32 a task whose gradient is about 2000 times
    smaller than the largest therefore has weight 0. Near that bound d may jump, because rounding decides.

    Example:
        >>> import torch
        >>> AlignedMTL().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2764, 0.8292])
    """

    TAXONOMY = "optimisation/gradient modulation"
