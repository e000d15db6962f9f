"""MCN: MultiTask-CenterNet, objects as points and their properties as values at these points."""

from __future__ import annotations

from typing import ClassVar

from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.mcn import MCNNetwork


class MCN(MTLMethod):
    """MultiTask-CenterNet (https://arxiv.org/abs/2108.05060, 2021), after CenterNet (arXiv:1904.07850).

    Rule: The coarsest map of the encoder goes through transposed convolutions, each of which doubles its size, to a
    stride of 4. All tasks read the result. Detection has three branches: heat maps p of the centres of boxes, size s,
    and place o of the centre in its cell; keypoints have four: heat maps of centres and of keypoints, places seen from
    the centre, and places in cells. A thing is where p is as high as all its neighbours in a 3 x 3 window. With N
    things, L = −1/N Σ {(1 − p)² ln p at centres, (1 − y)⁴ p² ln(1 − p) elsewhere} + 0.1/N Σ |s − ŝ| + 1/N Σ |o − ô|.

    Dense tasks such as segmentation have a head of two convolutions. The losses of the tasks are added with the static
    scales of the suite, or by any balancer.

    Symbols: y heat of the truth, a Gaussian around every centre; ŝ, ô of the truth, in cells.

    The suite's `model` chooses the encoder and `decoder_channels`, the width of the shared map and of every branch. The
    kinds of tasks `Detection` and `Keypoints` hold losses, decoding and scores, so that every other method can train
    them too, with one head for all quantities of a task.

    Differences from the papers: sums and N are those of the whole batch over all ranks, and an image that shows nothing
    counts as one thing; the Gaussian's radius is the exact solution, which the code of CenterNet misses; GroupNorm
    instead of BatchNorm in all that is added to the encoder; convolutions are not deformable. Parts of the method that
    the abstract does not tell, such as weights of the tasks, are those of CenterNet or the suite's.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Detection
        >>> model = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = MCN(MethodSpec({"boxes": Detection("boxes", classes=3)}, model))
        >>> method.configure_model()
        >>> raw = method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["boxes"]
        >>> raw.shape, method.tasks["boxes"].decode(raw).shape
        (torch.Size([2, 7, 32, 48]), torch.Size([2, 100, 6]))
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)

    def build_network(self) -> MTLNetwork:
        """Returns the network with a head of several branches for every task of heat maps."""
        return MCNNetwork(self.tasks, **self.spec.model)
