"""Cross-stitch: one network per task with channel-wise combinations of their features."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import set_apart
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.cross_stitch import StitchUnit
from mtlbench.networks.parallel_encoders import ColumnNetwork


class CrossStitch(MTLMethod):
    """Cross-stitch networks for multi-task learning (https://arxiv.org/abs/1604.03539, CVPR 2016).

    Rule: T encoders run side by side. After each stage the map of task i becomes f'_i = Σ_j a_ij f_j, channel by
    channel, and goes on in column i. With a = I these are T single-task networks.

    Symbols: f_j map (C, h, w) of column j; a_ij one learned number per channel and stage.

    Args:
        own: Initial a_ii; 0.8 in a widely used implementation.
        other: Initial a_ij, j ≠ i; 0.05 in the same implementation.
        stitch_lr: Learning rate of all a divided by that of the network, > 0. Factors of 100 suit plain SGD. Under
            Adam, whose steps are as large as the learning rate, they would change the combination too fast.

    Cost of a step: T forward and T backward passes, and memory for T networks. All columns run even if a single task is
    requested.

    Differences from the official code: columns start from the same weights, those of the single-task run of the
    same seed, and are not trained on single tasks before; the neck of a column reads its combined maps of all
    stages. A vision transformer's stages are equal groups of its blocks; class and register tokens stay in their
    column. Stitches take no weight decay. Encoders: CNNs, plain vision transformers and Swin.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = CrossStitch(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method.network.units[0]["normals"].weight[:, 0].tolist()  # what normals take of depth and normals
        [0.05000000074505806, 0.800000011920929]
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/cross-talk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"stitch_lr": [1.0, 10.0, 100.0]}

    network: ColumnNetwork

    def __init__(self, spec: MethodSpec, *, own: float = 0.8, other: float = 0.05, stitch_lr: float = 1.0) -> None:
        super().__init__(spec)
        if not 0 < stitch_lr < math.inf:
            raise MethodError(
                f"cross_stitch: stitch_lr must be positive and finite. Found {stitch_lr}. The default is 1."
            )
        self.unit = functools.partial(StitchUnit, own=own, other=other)
        self.stitch_lr = stitch_lr

    def build_network(self) -> MTLNetwork:
        """Returns T columns with stitches."""
        return ColumnNetwork(self.tasks, self.unit, **self.spec.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of every method, and one of the stitches."""
        lr = self.stitch_lr * self.spec.optimiser["lr"]
        return set_apart(super().parameter_groups(), self.network.units.parameters(), lr=lr, weight_decay=0.0)
