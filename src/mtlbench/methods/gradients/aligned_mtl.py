"""Aligned-MTL: the Jacobian's singular values are made equal, so that no direction dominates."""

from __future__ import annotations

from mtlbench.balancing.rules.aligned import Aligned


class AlignedMTL(Aligned):
    """Independent component alignment for multi-task learning (https://arxiv.org/abs/2305.19000, CVPR 2023).

    Rule: M = V Λ Vᵀ, B = √σ · V Λ^{-½} Vᵀ over the eigenvalues above 0, w = B 1, d = Σ_i w_i g_i. The gradients B G
    that are summed are orthogonal and of length √σ.

    Symbols: M Gramian of the gradients g_i of the tasks with respect to the shared parameters, averaged over all
    ranks; σ the eigenvalue that all others become.

    Args:
        alignment: σ is the least eigenvalue, ``"min"``, as in the paper; ``"median"``; or the mean, ``"rmse"``.
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`.

    Differences from the official code: the rule is TorchJD's, on sum scale. An eigenvalue counts as 0 below T · ε of
    the largest, with the ε of the precision in which the losses are computed: in float32 a task whose gradient is
    about 2000 times smaller than the largest has weight 0. Near that bound rounding decides, and d may jump.

    Example:
        >>> import torch
        >>> AlignedMTL().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2764, 0.8292])
    """

    TAXONOMY = "optimisation/gradient modulation"
