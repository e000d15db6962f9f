"""TaskPrompter: tokens of the tasks among those of the image."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.task_prompter import TaskPrompterNetwork


class TaskPrompter(MTLMethod):
    """TaskPrompter: spatial-channel prompts for several tasks (https://openreview.net/forum?id=-CwPopPJda, ICLR 2023).

    Rule: every task has a prompt, n learned tokens. The prompts of all tasks go with the patches through every block of
    a vision transformer, where all tokens attend to each other. After each stage with map F, task t reads
    [a_t ⊙ F ; c_t ⊙ F], with a_t the attention of its prompt to places and c_t that to channels. A convolution per task
    and map follows, and the task's head reads their sum.

    Symbols: F the stage's map, projected to C `decoder_channels`; a_t = N · softmax(q_t · k / √d) over N places, per
    head with d channels; c_t = C · softmax(r_t · F / √N) over C channels, where a linear layer maps the prompt to r_t,
    one number per place. Prompts are read as their mean over the n tokens.

    Args:
        prompts: n, >= 1; the paper's is 1.
        heads: Heads of the attention to places; must divide C. Channels have one, as in the paper.

    The encoder is a plain vision transformer (the paper: ViT-L; C there: 300), which runs once on N + T · n tokens. The
    paper clips gradients at 10. A task of the whole image has a linear head on its prompt after the last block.

    Differences from the official code: this is our reading of the paper, with a small default size. The scores of the
    decoder come from projections of their own instead of those of the blocks, so any attention kernel can be used.
    Channel prompts are made from the spatial ones after each stage instead of passing through the blocks. GroupNorm
    replaces BatchNorm, so that results do not depend on the split of a batch.

    Example:
        >>> import torch
        >>> from mtlbench.method import MethodSpec
        >>> from mtlbench.tasks import Depth, Normals
        >>> model = {"encoder": "test_vit", "image_size": [32, 48], "decoder_channels": 16}
        >>> method = TaskPrompter(MethodSpec({"depth": Depth("depth"), "normals": Normals("normals")}, model))
        >>> method.configure_model()
        >>> method(torch.zeros(2, 3, 32, 48, dtype=torch.uint8), ["normals"])["normals"].shape
        torch.Size([2, 3, 32, 48])
        >>> method.network.prompts["depth"].tokens.shape
        torch.Size([1, 64])
    """

    TAXONOMY = "architectures/computer vision/shared trunk"
    ENCODERS: ClassVar[tuple[str, ...]] = ("timm",)
    SEARCH: ClassVar[dict[str, Any]] = {"prompts": [1, 4], "heads": [1, 2, 4]}

    def __init__(self, spec: MethodSpec, *, prompts: int = 1, heads: int = 2) -> None:
        """Takes the hyper-parameters; `TaskPrompterNetwork` checks them."""
        super().__init__(spec)
        self.count, self.heads = prompts, heads

    def build_network(self) -> MTLNetwork:
        """Returns the transformer with prompts, and its decoder."""
        return TaskPrompterNetwork(self.tasks, prompts=self.count, heads=self.heads, **self.spec.model)
