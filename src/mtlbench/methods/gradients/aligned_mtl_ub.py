"""Aligned-MTL-UB: Aligned-MTL on gradients of the shared representation, with one pass through the trunk."""

from __future__ import annotations

from mtlbench.balancing.rules.aligned import Aligned


class AlignedMTLUB(Aligned):
    """Independent component alignment (https://arxiv.org/abs/2305.19000, CVPR 2023), upper bound.

    Rule: M = V Λ Vᵀ, B = √σ · V Λ^{-½} Vᵀ over the positive eigenvalues, w = B 1; one backward pass of Σ_i w_i L_i.

    Symbols: M Gramian of the gradients of the losses L_i with respect to the representation that the heads read, with
    the samples of all ranks concatenated; σ the eigenvalue to which all others are set.

    Args:
        alignment: Choice of σ: ``"min"``, the smallest eigenvalue (the paper's), ``"median"``, or ``"rmse"``, the mean.
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`.

    Differences from the official code: those of `aligned_mtl`; weights are computed per micro-batch.

    Example:
        >>> import torch
        >>> AlignedMTLUB().weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([1.1056, 0.8292])
    """

    TAXONOMY = "optimisation/gradient modulation"
    view = "representation"
