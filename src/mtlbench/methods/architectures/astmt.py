"""ASTMT: attentive single-tasking of multiple tasks."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.astmt import ASTMTNetwork
from mtlbench.networks.base import MTLNetwork


class ASTMT(MTLMethod):
    """ASTMT: attentive single-tasking of multiple tasks (https://arxiv.org/abs/1904.08918, 2019).

    Rule: All tasks share one network, which runs once per task. After each stage of the encoder, and after the neck,
    task t changes the map x to 2 σ(S_t(mean y)) ⊙ y with y = x + A_t x: a residual adapter followed by
    squeeze-and-excitation, which selects the channels for the task.

    Symbols: A_t 1 x 1 convolution of task t; S_t two linear layers of task t.

    Args:
        reduction: Channels divided by the hidden width of S_t, >= 1; 16 as in squeeze-and-excitation.

    Differences from the official code: every stage is modulated instead of every residual block, so that any timm
    encoder that runs by stages can be used (the paper: ResNet-26, 50 and 101). The factor 2 and zero initial weights
    make the initial network the plain shared one. The discriminator that makes gradients of tasks indistinguishable is
    left out, because it needs second derivatives; any balancer of this package can be used instead. BatchNorm
    statistics of the encoder are shared by all tasks. Choose an encoder without BatchNorm if that matters.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = ASTMT(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/single tasking"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"reduction": [4, 16]}

    def __init__(self, spec: MethodSpec, *, reduction: int = 16) -> None:
        """Takes and checks the hyper-parameters."""
        super().__init__(spec)
        if not reduction >= 1:
            raise MethodError(f"astmt: reduction must be >= 1. Found {reduction}. The default is 16.")
        self.reduction = reduction

    def build_network(self) -> MTLNetwork:
        """Returns the modulated network."""
        return ASTMTNetwork(self.tasks, reduction=self.reduction, **self.spec.model)
