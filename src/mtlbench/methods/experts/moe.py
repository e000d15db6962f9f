"""Sparse mixture of experts whose gate does not see the task; the control for task-aware gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class MoE(ExpertMethod):
    """Sparse mixture of experts (https://arxiv.org/abs/2101.03961, the Switch transformer; V-MoE arXiv:2106.05974).

    Rule: In some transformer blocks the MLP becomes E smaller ones. A router sends each token x to the k experts of
    largest p = softmax(W x), for any task. All tasks share one forward pass up to their heads. The loss
    gains balance · Σ_layers E · Σ_e f_e · P_e.

    Symbols: E experts per layer; k experts per token; W the router's matrix; P_e the mean of p_e and f_e the share of
    choices of expert e.

    Args:
        experts: E; V-MoE has 32.
        top_k: k, 1..E; 1 in the Switch transformer, 2 in V-MoE.
        placement: Blocks with experts: ``"every"``, ``"odd"`` (the 2nd, 4th, ...), ``"even"`` or a list of indices.
        balance: Coefficient of the load balance, >= 0; 0.01 is the Switch transformer's.
        noise: Standard deviation of noise on the logits, in training only; V-MoE has 1 / E.
        renormalise: Whether gates of a token sum to 1; None means where k >= 2.
        start: ``"random"``; ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's dense MLP, for pretrained weights.

    Differences from the papers: no capacity, no token is dropped; an expert is as wide as the dense MLP divided by k.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = MoE(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
        >>> method.configure_model()
        >>> sorted(method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
        ['depth', 'normals']
    """

    VERSION: ClassVar[int] = 3
    TAXONOMY = "architectures/conditional"
    SEARCH: ClassVar[dict[str, Any]] = {"balance": [0.001, 0.003, 0.01, 0.03, 0.1]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        experts: int = 8,
        top_k: int = 2,
        placement: str | Sequence[int] = "odd",
        balance: float = 0.01,
        noise: float = 0.0,
        renormalise: bool | None = None,
        start: str = "random",
    ) -> None:
        options = ExpertOptions(
            experts, top_k, placement, gate="agnostic", noise=noise, renormalise=renormalise, init=start
        )
        super().__init__(spec, options, RoutingWeights(load_balance=balance))
