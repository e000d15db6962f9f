"""ASE LoRA-MoE: low-rank experts on a frozen encoder, with shared experts whose weights are routed too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.method.experts import ExpertMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts.low_rank import LowRankExperts
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.routing_losses import RoutingWeights
from mtlbench.networks.experts.trunk import ExpertOptions


class ASELoRAMoE(ExpertMethod):
    """Adaptive shared experts with low-rank mixture-of-experts (https://arxiv.org/abs/2510.00570, 2025).

    Rule: The MLP of a block becomes mlp(x) + Σ_i p_i B_i A_i x + Σ_s p_s B_s A_s x, in which mlp is frozen, i runs over
    the k experts of largest logit and s over S shared experts, which every token uses. A router of its own for each
    task gives the logits of all of them; p is one softmax over the k + S that a token uses. The loss gains
    −w Σ_layers I(T; E), as in `mod_squad`.

    Symbols: A_i (r, D), B_i (D, r), B = 0 at the start, so that training starts from the encoder itself.

    Args:
        experts: Experts E to choose from; 16 in the paper.
        rank: r; 4 in the paper.
        top_k: k, in 1..E; 3 in the paper.
        shared: S, at least 1; 1 in the paper.
        fine: m, at least 1: m E experts of rank r / m, of which a token uses m k, beside m S shared ones; 2 and 4 in
            the paper's fine-grained forms. r must be a multiple of m.
        mutual_information: w, at least 0. The default is that of `mod_squad`.
        placement: Blocks with experts.
        noise: Standard deviation of the logits' noise, in training only.

    The whole encoder is frozen except for experts and routers, so ``model.weights`` should name a pretrained one. Neck
    and heads train. `mtlbench extract` works as for `mod_squad`; shared experts are always kept.

    Differences from the paper, whose code was not available: the order of top-k and softmax follows from its joint
    normalisation. No vector of the task is added to the tokens; each task has a router.

    Example:
        >>> import torch
        >>> from mtlbench.networks.experts.routing import JointRouter
        >>> router = JointRouter(1, 4, 2, "agnostic", ["depth"], shared=1)
        >>> router.token.weight = torch.nn.Parameter(torch.tensor([[2.0], [1.0], [0.0], [-1.0], [0.5]]))
        >>> router(torch.ones(1, 1), ["depth"]).gates.detach()
        tensor([[0.6285, 0.2312, 0.1402]])
    """

    TAXONOMY = "architectures/conditional"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm", "transformers")
    SEARCH: ClassVar[dict[str, Any]] = {"mutual_information": [0.0005, 0.005, 0.03], "rank": [4, 8]}

    def __init__(
        self,
        spec: MethodSpec,
        *,
        experts: int = 16,
        rank: int = 4,
        top_k: int = 3,
        shared: int = 1,
        fine: int = 1,
        mutual_information: float = 0.005,
        placement: str | Sequence[int] = "every",
        noise: float = 0.0,
    ) -> None:
        if shared < 1:
            raise MethodError(f"ase_lora_moe: shared must be at least 1. Found {shared}. The paper has 1.")
        if rank < 1 or fine < 1 or rank % fine:
            raise MethodError(
                f"ase_lora_moe: rank must be a multiple of fine, both at least 1. Found {rank} and {fine}."
            )
        if not 1 <= top_k <= experts:
            raise MethodError(f"ase_lora_moe: top_k must be in 1..experts. Found {top_k} of {experts} experts.")
        options = ExpertOptions(
            fine * experts,
            fine * top_k,
            placement,
            gate="per_task",
            noise=noise,
            rank=rank // fine,
            shared=fine * shared,
        )
        super().__init__(spec, options, RoutingWeights(mutual_information))

    def build_network(self) -> MTLNetwork:
        """Returns the network, whose encoder is frozen except for experts and routers."""
        network = cast(ExpertNetwork, super().build_network())
        trained = [p for layer in network.layers.values() for p in layer.router.parameters()]
        low = [cast(LowRankExperts, layer.experts) for layer in network.layers.values()]
        known = {id(p) for p in (*trained, *(p for experts in low for p in (experts.down, experts.up)))}
        for parameter in network.encoder.parameters():
            parameter.requires_grad_(id(parameter) in known)
        return network
