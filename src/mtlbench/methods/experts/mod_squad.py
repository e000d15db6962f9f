"""Mod-Squad: experts in attention and MLPs, with a loss on the mutual information of tasks and experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class ModSquad(ExpertMethod):
    """Mod-Squad (https://arxiv.org/abs/2212.08066, CVPR 2023).

    Rule: Even blocks get experts in attention, odd ones in the MLP. A learned vector e_t is added to every token of
    task t before every block. A router of its own for each task sends a token x to the k experts of largest
    p = softmax(W_t x). The loss gains −w · Σ_layers I(T; E), I = H(E) − H(E | T) of P(E | t), the mean of p over the
    tokens of task t. Each task learns to use few experts while all experts are used; `mtlbench extract` writes, per
    task, a network of its experts alone.

    Symbols: T the task, uniform; E the expert of a layer; W_t the router of task t; w ``mutual_information``.

    Args:
        mutual_information: w >= 0; 0.005 in the paper's alternating models, 0.0005 to 0.03 in the official code.
        experts: MLP experts per layer; 16 in the paper.
        top_k: MLP experts per token; 4 in the paper.
        placement: Blocks with MLP experts; ``"odd"`` in the paper.
        attention_experts: Attention experts per layer; None for twice the heads: 24 for ViT-B, as in the paper, whose
            ViT-S has 15.
        attention_top_k: Attention experts per token; None for the number of heads, as in the paper.
        attention_placement: Blocks with attention experts; ``"even"`` in the paper.
        gate: ``"per_task"`` in the paper; for the others see `task_moe`.
        task_tokens: Initial standard deviation of e_t; 0 for no e_t. 1 in the official code, see below.
        prior: P(t): ``"uniform"``, or ``"tokens"`` in proportion to the images of the step.
        scope: ``"global"``: P(E | t) over all ranks; ``"local"``: each rank by itself, as the official code.
        z: Coefficient of the mean of logsumexp(logits)²; 0 in the paper's models.
        noise: Standard deviation of the logits' noise, in training only; 0 in the paper's models.
        renormalise: Whether gates of a token sum to 1; None means where k >= 2. False is the official form; extraction
            then keeps the rows of all experts in the routers.
        start: Initialisation of the MLP experts: ``"random"``; ``"split"``, ``"copy"`` or ``"scaled"`` of the encoder's
            dense MLP.

    Differences from the official code: e_t starts at the scale of the other weights. At a scale of 1, added in every
    block, it dominates the tokens in a short training, which cost 4.7 points of Δm on suite `experts`. No 1e-4 is added
    to entropies or to p. Gates are renormalised. Statistics cover all ranks and micro-batches, and tasks without a
    label enter through running means. Routers and experts are drawn from a truncated normal of deviation 0.02.
    Evaluation has no noise. The run's balancer weights the task losses; the paper's learned weights are ``balancer:
    uncertainty``. Heads are mtlbench's, the same for every method.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "vit_tiny_patch16_224", "image_size": [32, 32], "encoder_options": {"depth": 2}}
        >>> method = ModSquad(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
        >>> method.configure_model()
        >>> sorted(method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
        ['depth', 'normals']
    """

    VERSION: ClassVar[int] = 3
    TAXONOMY = "architectures/conditional"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"mutual_information": [0.0005, 0.001, 0.003, 0.005, 0.01, 0.03]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        mutual_information: float = 0.005,
        experts: int = 16,
        top_k: int = 4,
        placement: str | Sequence[int] = "odd",
        attention_experts: int | None = None,
        attention_top_k: int | None = None,
        attention_placement: str | Sequence[int] = "even",
        gate: str = "per_task",
        task_tokens: float = 0.02,
        prior: str = "uniform",
        scope: str = "global",
        z: float = 0.0,
        noise: float = 0.0,
        renormalise: bool | None = None,
        start: str = "random",
    ) -> None:
        options = ExpertOptions(
            experts,
            top_k,
            placement,
            attention_experts,
            attention_top_k,
            attention_placement,
            gate,
            noise,
            renormalise,
            task_tokens,
            start,
        )
        super().__init__(spec, options, RoutingWeights(mutual_information, z=z, prior=prior, scope=scope))
