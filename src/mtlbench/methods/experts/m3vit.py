"""M3ViT: one router per task over shared expert MLPs, with a balance loss for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class M3ViT(ExpertMethod):
    """M3ViT (https://arxiv.org/abs/2210.14793, NeurIPS 2022).

    Rule: In every second block the MLP becomes E experts. A router of its own for each task t sends a token x to the k
    experts of largest p = softmax(W_t x + noise) and mixes their outputs with those p. The loss gains, per layer and
    task, balance · (CV² of the experts' importance + E · Σ_e f_te · P_te): every task is pushed to use all experts.

    Symbols: E experts per layer; k experts per token; W_t the router of task t; importance the mean gate of an expert;
    f and P the share of choices and the mean of p of task t; CV² variance over squared mean.

    Args:
        experts: E; 16 in the paper.
        top_k: k; 4 in the paper.
        placement: Blocks with experts; the paper's are ``"odd"`` (the 2nd, 4th, ...).
        gate: ``"per_task"`` is the paper's multi-gate; ``"token_task"`` its task-conditioned single gate.
        balance: Coefficient of the balance losses; 0.01 in the official code.
        noise: Standard deviation of the logits' noise, in training only; 1 / E in the official code.
        renormalise: Whether gates of a token sum to 1; None means where k >= 2.
        start: ``"random"``; ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's dense MLP, for pretrained weights.

    Differences from the official code: its second term is CV² of a load that is smooth only through the noise; the
    product of share and probability replaces it, with the same minimum and a gradient without noise.
    Gates are renormalised. Statistics are those of all ranks. Noise is off by default, because draws per token depend
    on how a batch is cut over ranks, and never enters an evaluation. An expert's width is the MLP's over k, as there.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = M3ViT(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
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
        experts: int = 16,
        top_k: int = 4,
        placement: str | Sequence[int] = "odd",
        gate: str = "per_task",
        balance: float = 0.01,
        noise: float = 0.0,
        renormalise: bool | None = None,
        start: str = "random",
    ) -> None:
        options = ExpertOptions(experts, top_k, placement, gate=gate, noise=noise, renormalise=renormalise, init=start)
        super().__init__(spec, options, RoutingWeights(task_balance=balance, importance=balance))
