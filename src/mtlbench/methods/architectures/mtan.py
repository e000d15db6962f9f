"""MTAN: one encoder with attention masks of each task on its features."""

from __future__ import annotations

from typing import ClassVar

from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.mtan import MTANNetwork


class MTAN(MTLMethod):
    """Multi-task attention network (https://arxiv.org/abs/1803.10704, CVPR 2019).

    Rule: The encoder runs once. In its stage s task i sees a_i,s = m_i,s ⊙ f_s with the mask
    m_i,s = σ(norm(V ReLU(norm(U [u_s; r_s(a_i,s-1)])))), which in the first stage depends on u_s alone. The neck and
    the task's head read all a_i,s. With masks of 1 this is the dense network.

    Symbols: f_s map of stage s; u_s the map before the last block of the stage; U, V 1 x 1 convolutions that task i
    owns, with a quarter of the channels between them; r_s a residual bottleneck that all tasks share, resampled
    to the next stage's grid.

    Cost of a step: one forward and one backward pass of the encoder, and T of masks, refinement and neck.

    Differences from the official code: all layers after the encoder use GroupNorm instead of BatchNorm, so that results
    do not depend on the split over ranks; bilinear resampling instead of max pooling between stages; heads
    read the maps of all stages through the shared neck. Where a stage has one block or is one module (Swin, ConvNeXt),
    u_s is f_s. A vision transformer's stages are equal groups of its blocks. Encoders: CNNs, plain vision
    transformers and Swin.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = MTAN(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)

    def build_network(self) -> MTLNetwork:
        """Returns the network with masks."""
        return MTANNetwork(self.tasks, **self.spec.model)
