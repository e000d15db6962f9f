"""MTLoRA: low-rank adaptation for several tasks."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.mtlora import MTLoRANetwork


class MTLoRA(MTLMethod):
    """MTLoRA: low-rank adaptation for several tasks (https://arxiv.org/abs/2403.20320, 2024).

    Rule: Every linear layer W of a pretrained transformer's blocks is frozen and returns W x + s B A x. The last
    block of each stage runs once per task t, where its layers return W x + s B A x + s B_t A_t x; its output is
    the map of that stage for the task. For the next stage it runs without the last term. B and B_t start as zero.

    Symbols: A, B of rank r, shared by all tasks; A_t, B_t of rank r_t, of task t; s a constant.

    Args:
        rank: r, >= 1; the paper's is 64. A rank above the sides of a layer is reduced to them.
        task_rank: r_t, >= 1; the paper's is 4.
        scale: s; the paper's is 4. With a gradient rule such as `pcgrad`, training at this scale amplifies rounding:
            gradients of two ranks and of one process agree, but weights drift apart, by 6e-7 after 20 steps in float64.
        dropout: Dropout on the input of A and A_t, in [0, 1). The paper's is 0.05. The default is 0, because dropout
            differs between ranks, so that two ranks would not equal one process.

    A, B, A_t, B_t, the neck and the heads are trained. The rest of the encoder is frozen and needs pretrained
    `weights`. The paper: Swin-T at 448 pixels, batch 32, 300 epochs.

    Differences from the official code: the stream of a task keeps the shared term (mode 'matrixv2' of the official
    code; mode 'matrix' leaves it out). Norms, biases and embeddings stay frozen. Neck and heads are this package's. Our
    reading is that the streams of tasks separate in the last block of a stage. A vision transformer's stages are its
    blocks between two maps.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_vit", "image_size": [32, 48], "decoder_channels": 8}
        >>> method = MTLoRA(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model), rank=8)
        >>> method.configure_model()
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])["normals"].shape
        torch.Size([2, 3, 32, 48])
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"rank": [16, 64], "task_rank": [4, 16]}

    def __init__(
        self, spec: MethodSpec, *, rank: int = 64, task_rank: int = 4, scale: float = 4.0, dropout: float = 0.0
    ) -> None:
        """Takes and checks the hyper-parameters."""
        super().__init__(spec)
        if not (rank >= 1 and task_rank >= 1):
            raise MethodError(f"mtlora: rank and task_rank must be >= 1. Found {rank} and {task_rank}.")
        if not 0 <= dropout < 1:
            raise MethodError(f"mtlora: dropout must be in [0, 1). Found {dropout}. The default is 0.")
        self.options: dict[str, Any] = {"rank": rank, "task_rank": task_rank, "scale": scale, "dropout": dropout}

    def build_network(self) -> MTLNetwork:
        """Returns the network with low-rank changes."""
        return MTLoRANetwork(self.tasks, **self.options, **self.spec.model)
