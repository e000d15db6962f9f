"""Aligned-MTL-UB: Aligned-MTL on the gradients of the shared representation, at the cost of one pass."""

from __future__ import annotations

from mtlbench.balancing.rules.aligned import Aligned


class AlignedMTLUB(Aligned):
    """Independent component alignment (https://arxiv.org/abs/2305.19000, CVPR 2023), upper bound.

    Rule: M = V Λ Vᵀ, B = √σ · V Λ^{-½} Vᵀ over the eigenvalues above 0, w = B 1; one backward pass of Σ_i w_i L_i.

    Symbols: M Gramian of the gradients of the losses L_i with respect to the representation that the heads read, all
    samples of all ranks side by side; σ the eigenvalue that all others become.

    Args:
        alignment: σ is the least eigenvalue, ``"min"``, as in the paper; ``"median"``; or the mean, ``"rmse"``.
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`.

    Differences from the official code: those of `aligned_mtl`; weights are computed per micro-batch.

    Example:
        >>> import torch
        >>> AlignedMTLUB().weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([1.1056, 0.8292])
    """

    TAXONOMY = "optimisation/gradient modulation"
    view = "representation"
