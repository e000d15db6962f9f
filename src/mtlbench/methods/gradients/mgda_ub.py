"""MGDA-UB: MGDA on gradients of the shared representation, with one backward pass through the trunk."""

from __future__ import annotations

from mtlbench.balancing.rules.min_norm import MinNorm


class MGDAUB(MinNorm):
    """The upper bound of MGDA, from the same paper (https://arxiv.org/abs/1810.04650, NeurIPS 2018).

    Rule: w minimises ‖Σ_i w_i z_i / n_i‖ over w ≥ 0, Σ_i w_i = 1; then one backward pass of Σ_i w_i L_i / n_i.

    Symbols: z_i gradient of task i with respect to the shared representation that the heads read, with the samples of
    all ranks concatenated in one row; n_i the divisor chosen by ``normalise``. ‖Σ w_i z_i‖ times the norm of the
    trunk's Jacobian is an upper bound of ‖Σ w_i g_i‖.

    Args:
        normalise: ``"none"`` (n_i = 1, the paper's rule), ``"l2"`` (‖z_i‖), ``"loss"`` (L_i) or ``"loss+"``
            (L_i ‖z_i‖). Weights are those of the original losses, w_i / n_i, and sum to 1 only with ``"none"``.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code: w is exact (see `mgda`). Samples are flattened as there; LibMTL sums z_i over
    the batch. The view works on one micro-batch at a time.

    Example:
        >>> import torch
        >>> MGDAUB(scale="mean").weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([0.6000, 0.4000])
    """

    TAXONOMY = "optimisation/multi-objective"
    view = "representation"
