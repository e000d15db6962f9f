"""NDDR-CNN: one network per task with learned reductions of their concatenated features."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import set_apart
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.nddr import NDDRUnit
from mtlbench.networks.parallel_encoders import ColumnNetwork


class NDDRCNN(MTLMethod):
    """NDDR-CNN: neural discriminative dimensionality reduction (https://arxiv.org/abs/1801.08297, CVPR 2019).

    Rule: T encoders run side by side. After each stage the map of task i becomes
    f'_i = ReLU(norm(W_i [f_1; ...; f_T])) with a 1 x 1 convolution W_i from T·C to C channels, and goes on in column i.
    W_i starts as own · I on f_i and other · I on the rest.

    Symbols: f_j map (C, h, w) of column j; W_i one matrix per task and stage.

    Args:
        own: Initial diagonal on the task's own map; 0.8 in a widely used implementation.
        other: Initial diagonal on the maps of other tasks; 0.05 in the same implementation.
        nddr_lr: Learning rate of the units divided by that of the network, > 0. Factors of 100 suit plain SGD.

    Cost of a step: T forward and T backward passes, T · T · C² weights per stage, and memory for T networks. All
    columns run even if a single task is requested.

    Differences from the official code: GroupNorm instead of BatchNorm in the units, so that nothing depends on how a
    batch is cut over ranks; columns start from the same weights, those of the single-task run of the same seed, and
    are not trained on single tasks before; the neck of a column reads its maps of all stages. The paper is about
    CNNs: on a vision transformer the units come after equal groups of blocks, ReLU included; class and register
    tokens stay in their column. Units take no weight decay. Encoders: CNNs, plain vision transformers and Swin.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = NDDRCNN(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/cross-talk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"nddr_lr": [1.0, 10.0, 100.0]}

    network: ColumnNetwork

    def __init__(self, spec: MethodSpec, *, own: float = 0.8, other: float = 0.05, nddr_lr: float = 1.0) -> None:
        super().__init__(spec)
        if not 0 < nddr_lr < math.inf:
            raise MethodError(f"nddr_cnn: nddr_lr must be positive and finite. Found {nddr_lr}. The default is 1.")
        self.unit = functools.partial(NDDRUnit, own=own, other=other)
        self.nddr_lr = nddr_lr

    def build_network(self) -> MTLNetwork:
        """Returns T columns with NDDR units."""
        return ColumnNetwork(self.tasks, self.unit, **self.spec.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of every method, and one of the units."""
        lr = self.nddr_lr * self.spec.optimiser["lr"]
        return set_apart(super().parameter_groups(), self.network.units.parameters(), lr=lr, weight_decay=0.0)
