"""PLE: several levels of shared and private experts."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.ple import PLENetwork


class PLE(MTLMethod):
    """Progressive layered extraction (https://doi.org/10.1145/3383313.3412236, RecSys 2020).

    Rule: In level l shared experts read the common map x_0 and private experts of task t read x_t; all start as the
    neck's map. The next x_t is the mixture of shared and t's private experts with weights softmax(W_t mean(x_t)); the
    next x_0 that of all experts with softmax(W_0 mean(x_0)). Heads read the x_t after the last level. One level is
    CGC, and CGC without private experts is MMoE.

    Symbols: x_0 common map; x_t map of task t; mean(x) the mean over places; W a matrix per level and gate.

    Args:
        levels: Number of levels, >= 1; one level is CGC.
        shared: Shared experts per level, >= 1.
        private: Experts of each task per level, >= 0.

    Cost of a step: one forward and one backward pass of the dense network, plus levels · (shared + T · private)
    convolution blocks of the width of the neck.

    Differences from the paper: it mixes MLPs on a vector of features; here experts are 3 x 3 convolution blocks on
    the neck's map of any encoder, and an image has one mixture for all its places. Some libraries leave the shared
    gate out; this one has it. With two or more levels there is no single representation that all heads read, so rules
    on its gradient are rejected.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = PLE(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), private=2)
        >>> method.configure_model()
        >>> [(len(level.shared), len(level.private["depth"])) for level in method.network.levels]
        [(1, 2), (1, 2)]
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    SEARCH: ClassVar[dict[str, Any]] = {"levels": [1, 2], "shared": [1, 2], "private": [1, 2]}

    def __init__(self, spec: MethodSpec, *, levels: int = 2, shared: int = 1, private: int = 1) -> None:
        super().__init__(spec)
        self.options = {"levels": levels, "shared": shared, "private": private}

    def build_network(self) -> MTLNetwork:
        """Returns the network with levels of experts."""
        return PLENetwork(self.tasks, **self.options, **self.spec.model)
