"""InvPT: inverted pyramid multi-task transformer."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.feature_exchange import ExchangeNetwork
from mtlbench.networks.invpt import InvPTDecoder


class InvPT(MTLMethod):
    """InvPT: inverted pyramid multi-task transformer (https://arxiv.org/abs/2203.07997, 2022).

    Rule: The encoder's deepest map gives every task a preliminary feature and prediction. Three stages at strides 16,
    8 and 4, with channels C, C/2 and C/4, refine the features of all tasks together: each upsamples, adds an
    encoder map, and lets every place of every task attend to the places of all tasks. A stage adds the upsampled
    attention scores of the stage before to its own. Heads read the sum of all stages. The loss of a task is
    L(final) + auxiliary · L(preliminary), and any balancer sees it as one.

    Symbols: C `decoder_channels`; with T tasks on an h x w grid, attention is over T·h·w tokens, of which queries
    are pooled by 2 and keys and values to stride 32.

    Args:
        auxiliary: Weight of the preliminary prediction, >= 0; usually 1.
        heads: Attention heads of every stage; must divide C, C/2 and C/4, none of which falls below 8.

    The suite's `model` chooses the encoder (the paper: ViT-L) and `decoder_channels` (the paper: 512). Its optimiser
    there: Adam, learning rate 2e-5, weight decay 1e-6, 40 000 iterations of batch 2. Whole-image tasks have a linear
    head on the encoder's mean maps and exchange nothing.

    Differences from the official code: this is our reading of the paper, with a small default size. Windows are
    averaged instead of reduced by strided convolutions. Scores are passed on with one learned factor per head.
    Preliminary predictions are supervised but not fed into the stages. All layers after the encoder use GroupNorm and
    LayerNorm instead of BatchNorm, so that results do not depend on the split of a batch. The official code has unused
    parameters; here every parameter reaches a loss.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_vit", "image_size": [32, 48], "decoder_channels": 16}
        >>> method = InvPT(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> outputs = method.network(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])
        >>> outputs.predictions["normals"].shape, len(outputs.auxiliary["normals"])
        (torch.Size([2, 3, 32, 48]), 1)
    """

    TAXONOMY = "architectures/computer vision/prediction distillation"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"auxiliary": [0.3, 1.0], "heads": [1, 2, 4]}

    def __init__(self, spec: MethodSpec, *, auxiliary: float = 1.0, heads: int = 2) -> None:
        """Takes the hyper-parameters; `ExchangeNetwork` and `InvPTDecoder` check them."""
        super().__init__(spec)
        self.auxiliary, self.heads = auxiliary, heads

    def build_network(self) -> MTLNetwork:
        """Returns the network with the inverted pyramid."""
        decoder = functools.partial(InvPTDecoder, heads=self.heads)
        return ExchangeNetwork(self.tasks, decoder, auxiliary=self.auxiliary, **self.spec.model)
