"""A timm vision transformer with sparse experts in its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mtlbench.errors import SuiteError
from mtlbench.networks.encoder import Encoder
from mtlbench.networks.experts import LayerStatistics
from mtlbench.networks.experts.trunk import ExpertOptions, ExpertTrunk


class ExpertViT(ExpertTrunk):
    """Runs the blocks of an `Encoder`'s vision transformer, some of them with experts."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str], options: ExpertOptions) -> None:
        """Replaces attention and MLPs of the encoder's blocks.

        Args:
            encoder: Encoder of a timm `VisionTransformer` with ordinary blocks.
            tasks: Names of all tasks.
            options: Placement and routing.

        Raises:
            SuiteError: The encoder is not such a transformer.
            MethodError: A value is outside its range.
        """
        super().__init__(encoder, _ordinary(encoder).embed_dim, tasks, options)

    def begin(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Returns tokens and maps (B, C, h, w) of images (B, 3, H, W) uint8, RGB."""
        x, early = self.encoder.embed(self.encoder.normalise(inputs))
        x, maps = self.run(x, range(self.first), (), {})
        return x, [*early, *maps], None

    @property
    def model(self) -> Any:
        """The timm transformer."""
        return self.encoder.trunk.model

    @property
    def blocks(self) -> Any:
        """The transformer's blocks."""
        return self.model.blocks

    def block(
        self,
        index: int,
        x: Tensor,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> Tensor:
        """Runs attention and MLP of a block."""
        block = self.blocks[index]
        attention = self.part(block.attn, block.norm1(x), tasks, f"block{index}.attention", statistics)
        x = x + block.drop_path1(block.ls1(attention))
        mlp = self.part(block.mlp, block.norm2(x), tasks, f"block{index}.mlp", statistics)
        return x + block.drop_path2(block.ls2(mlp))

    def features(self, x: Tensor, index: int, present: Any = None) -> list[Tensor]:
        """Returns the map (R, D, h, w) of a block that the neck reads."""
        if index not in self.encoder.trunk.out_indices:
            return []
        model = self.model
        return [x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, tuple(model.patch_embed.grid_size))]


def _ordinary(encoder: Encoder) -> Any:
    model = getattr(encoder.trunk, "model", None)
    if isinstance(model, VisionTransformer) and all(type(block) is Block for block in model.blocks):
        return model
    found = type(model or encoder.trunk).__name__
    raise SuiteError(
        "Experts need a plain vision transformer: timm's VisionTransformer with ordinary blocks (attention, MLP). "
        f"Found {found}. Choose another `model.encoder`, for example 'vit_tiny_patch16_224'."
    )
