"""PAD-Net: prediction-and-distillation network."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.feature_exchange import ExchangeNetwork
from mtlbench.networks.pad_net import PADDecoder


class PADNet(MTLMethod):
    """PAD-Net: prediction and distillation (https://arxiv.org/abs/1805.04409, 2018).

    Rule: From a map that all tasks share, two bottleneck blocks compute a feature f_i of every task, and a 1 x 1
    convolution makes a first prediction. Attention then adds the features of the other tasks,
    f_i + Σ_{a≠i} σ(W_ia f_a) ⊙ V_ia f_a, and a head makes the final prediction. The loss of a task is
    L(final) + auxiliary · L(initial), and any balancer sees it as one.

    Symbols: f_i feature of task i; W, V 3 x 3 convolutions per ordered pair of tasks.

    Args:
        auxiliary: Weight of the initial prediction, >= 0; usually 1.

    The suite's `model` chooses the encoder and `decoder_channels`, the width of all features (the code of the
    survey by Vandenhende et al.: 256). Whole-image tasks have a linear head on the encoder's mean maps and exchange
    nothing.

    Differences from the official code: the shared map is the neck of this package's dense network; final heads are
    its heads (3 x 3 convolution block, 1 x 1 convolution); GroupNorm instead of BatchNorm in all that is added to the
    encoder, so that nothing depends on how a batch is cut; every intermediate prediction is of a task of the suite.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = PADNet(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])
        >>> outputs.predictions["normals"].shape, len(outputs.auxiliary["normals"])
        (torch.Size([2, 3, 32, 48]), 1)
    """

    TAXONOMY = "architectures/computer vision/prediction distillation"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"auxiliary": [0.3, 1.0]}

    def __init__(self, spec: MethodSpec, *, auxiliary: float = 1.0) -> None:
        """Takes the hyper-parameters; `ExchangeNetwork` checks them."""
        super().__init__(spec)
        self.auxiliary = auxiliary

    def build_network(self) -> MTLNetwork:
        """Returns the network with the two-step decoder."""
        return ExchangeNetwork(self.tasks, PADDecoder, auxiliary=self.auxiliary, **self.spec.model)
