"""MMoE: shared experts, combined by one gate per task."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.mmoe import MMoENetwork


class MMoE(MTLMethod):
    """Modelling task relationships with multi-gate mixture-of-experts (https://doi.org/10.1145/3219819.3220007, 2018).

    Rule: E experts read the shared map x. The head of task t reads Σ_e g_t,e · expert_e(x) with
    g_t = softmax(W_t mean(x)). Every expert runs for every image. Any balancer may be used.

    Symbols: E experts; x the neck's map; mean(x) its mean over places; W_t a matrix of task t.

    Args:
        experts: Number of experts E, >= 1. Vision models often use T or 3.

    Cost of a step: one forward and one backward pass of the dense network, plus E convolution blocks of the width
    of the neck, once for all tasks.

    Differences from the paper: it mixes MLPs on a vector of features; here experts are 3 x 3 convolution blocks on
    the neck's map of any encoder, and an image has one mixture for all its places. We know of no official code.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = MMoE(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), experts=4)
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])
        >>> outputs.predictions["normals"].shape, outputs.statistics["gates"]["normals"].shape
        (torch.Size([2, 3, 32, 48]), torch.Size([2, 4]))
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    SEARCH: ClassVar[dict[str, Any]] = {"experts": [3, 4, 8]}

    def __init__(self, spec: MethodSpec, *, experts: int = 3) -> None:
        super().__init__(spec)
        self.experts = experts

    def build_network(self) -> MTLNetwork:
        """Returns the network with experts and gates."""
        return MMoENetwork(self.tasks, experts=self.experts, **self.spec.model)
