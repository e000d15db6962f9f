"""MTI-Net: multi-scale task interaction."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.feature_exchange import ExchangeNetwork
from mtlbench.networks.mti_net import MTIDecoder


class MTINet(MTLMethod):
    """MTI-Net: multi-scale task interaction networks (https://arxiv.org/abs/2001.06902, 2020).

    Rule: At each scale s of the encoder, coarsest first, two residual blocks make a feature f_{s,i} of every task i
    from the encoder's map and, but for the coarsest, from what the coarser scale propagates: its feature plus a
    squeeze-and-excitation of a summary of all tasks, weighted by a softmax over tasks. Each f_{s,i} predicts task i
    by a 1 x 1 convolution. Within a scale f_{s,i} + Σ_{a≠i} σ(W f_{s,a}) ⊙ V f_{s,a} gathers from the other tasks; a
    head on all scales predicts. The loss of a task is L(final) + auxiliary · Σ_s L(prediction at scale s), and any
    balancer sees it as one.

    Symbols: f_{s,i} feature of task i at scale s; W, V 3 x 3 convolutions per scale and ordered pair of tasks.

    Args:
        auxiliary: Weight of each scale's prediction, >= 0; the paper's is 1.

    The suite's `model` chooses the encoder (the paper: HRNet-18, four scales) and `decoder_channels`, the width of
    all features. Whole-image tasks have a linear head on the encoder's mean maps and exchange nothing.

    Differences from the official code: features have the same width at every scale instead of the encoder's channels of
    that scale. All layers after the encoder use GroupNorm instead of BatchNorm, so that results do not depend on the
    split of a batch. A vision transformer's maps are resampled to strides 4, 8, 16 and 32. Auxiliary tasks without a
    score of their own are ordinary tasks here.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = MTINet(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])
        >>> outputs.predictions["normals"].shape, len(outputs.auxiliary["normals"])
        (torch.Size([2, 3, 32, 48]), 4)
    """

    TAXONOMY = "architectures/computer vision/prediction distillation"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"auxiliary": [0.3, 1.0]}

    def __init__(self, spec: MethodSpec, *, auxiliary: float = 1.0) -> None:
        """Takes the hyper-parameters; `ExchangeNetwork` checks them."""
        super().__init__(spec)
        self.auxiliary = auxiliary

    def build_network(self) -> MTLNetwork:
        """Returns the network with the multi-scale decoder."""
        return ExchangeNetwork(self.tasks, MTIDecoder, auxiliary=self.auxiliary, **self.spec.model)
