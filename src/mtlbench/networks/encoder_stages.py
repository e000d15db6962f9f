"""Runs an encoder stage by stage, for networks that read or change its maps between the stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mtlbench.errors import SuiteError
from mtlbench.networks.encoder import Encoder
from mtlbench.networks.stem_vit import StemFeatures


@dataclass(frozen=True)
class State:
    """Features that one stage passes to the next.

    Attributes:
        map: (B, C, h, w).
        prefix: (B, n, C), tokens of a transformer that have no position in the image (class token, registers), or None.
    """

    map: Tensor
    prefix: Tensor | None = None

    def with_map(self, new: Tensor) -> State:
        """Returns the state with another map of the same shape and the same prefix.

        Args:
            new: (B, C, h, w).
        """
        return replace(self, map=new)


class Stages:
    """A view of an encoder as stages, one per map. The encoder keeps its parameters and their names.

    Call ``state = start(image)``, then ``state = run(i, state)`` for every stage i. The maps after each stage are those
    that ``encoder(image)`` returns. Create the view after changing blocks of the encoder, not before.

    Attributes:
        blocks: The modules of each stage in order. A CNN's stem belongs to its first stage, and a transformer's patch
            embedding to `start`. A stage that is not a plain sequence (Swin, ConvNeXt) counts as one block. Of
            `stem_vit_tiny`, the stem down to its map is the first stage.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Splits the encoder into stages.

        Args:
            encoder: A CNN or hierarchical transformer that timm runs layer by layer, or a plain ViT.

        Raises:
            SuiteError: The encoder cannot be run by stages.
        """
        trunk: Any = encoder.trunk
        self.encoder = encoder
        self.plain = _is_plain_vit(trunk)
        self.stem = isinstance(trunk, StemFeatures)
        if self.stem:
            stem, blocks = list(trunk.model.patch_embed.to_fine), list(trunk.model.blocks)
            layers, ends = [*stem, *blocks], [len(stem) - 1, *(len(stem) + i for i in trunk.out_indices)]
        elif self.plain:
            layers, ends = list(trunk.model.blocks), list(trunk.out_indices)
        else:
            layers, ends = _layers(trunk)
        starts = [0, *(end + 1 for end in ends[:-1])]
        self.blocks = [_flat(layers[a : b + 1]) for a, b in zip(starts, ends, strict=True)]

    def __len__(self) -> int:
        """Returns the number of stages, which equals the number of the encoder's maps."""
        return len(self.blocks)

    def start(self, image: Tensor) -> State:
        """Returns the state before the first stage: the image itself, or the embedded patches of a ViT.

        Args:
            image: (B, 3, H, W) float, normalised.
        """
        if not self.plain:
            return State(image)
        vit: Any = self.encoder.trunk.model
        grid = vit.patch_embed.dynamic_feat_size(image.shape[-2:])
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(image))))
        return _from_tokens(tokens, vit.num_prefix_tokens, grid)

    def run(self, stage: int, state: State, part: slice = slice(None)) -> State:
        """Returns the state after a stage, or after a part of its blocks.

        Args:
            stage: Index of the stage.
            state: State after the previous stage, perhaps with another map, or after the blocks before ``part``.
            part: The part of ``blocks[stage]`` to run.
        """
        # A map is the interface between stages, so each kind of encoder converts from and to its own layout.
        blocks = self.blocks[stage][part]
        if self.stem and stage == 0:
            return State(_through(blocks, state.map))
        if self.stem and blocks and blocks[0] is self.blocks[1][0]:
            return self._leave_stem(blocks, state.map)
        if self.plain or self.stem:
            tokens = _through(blocks, _to_tokens(state))
            return _from_tokens(tokens, self.encoder.trunk.model.num_prefix_tokens, state.map.shape[-2:])
        if not self.encoder.channels_last or not blocks:
            return State(_through(blocks, state.map))
        is_image = stage == 0 and blocks[0] is self.blocks[0][0]
        x = state.map if is_image else state.map.permute(0, 2, 3, 1)
        return State(_through(blocks, x).permute(0, 3, 1, 2))

    def _leave_stem(self, blocks: list[nn.Module], fine: Tensor) -> State:
        """Returns the state after a stem's map has become tokens and these have gone through blocks."""
        trunk: Any = self.encoder.trunk
        return _from_tokens(_through(blocks, trunk.tokens(fine)), 0, trunk.model.patch_embed.grid_size)


def _is_plain_vit(trunk: Any) -> bool:
    # Related networks (EVA, BEiT, Hiera) have their own forward pass, which hands more than tokens to each block.
    model = getattr(trunk, "model", None)
    plain = getattr(type(model), "forward_intermediates", None) is VisionTransformer.forward_intermediates
    return plain and not trunk.norm and not isinstance(trunk, StemFeatures)


def _layers(trunk: Any) -> tuple[list[nn.Module], list[int]]:
    """Returns the layers in the order in which timm runs them, and the indices of those whose output is a map."""
    if isinstance(trunk, FeatureListNet) and not trunk.concat:
        return list(trunk.values()), [i for i, name in enumerate(trunk) if name in trunk.return_layers]
    if isinstance(trunk, (EfficientNetFeatures, MobileNetV3Features)) and trunk.feature_hooks is None:
        stem = [module for name, module in trunk.named_children() if name != "blocks"]
        # timm counts the stem as stage 0.
        return [*stem, *trunk.blocks], [len(stem) - 1 + i for i in sorted(trunk._stage_out_idx)]
    raise SuiteError(
        f"This method runs the encoder stage by stage, and {type(getattr(trunk, 'model', trunk)).__name__} cannot be "
        "run this way. Choose `model.encoder` among plain ViTs (vit_*, deit_*), CNNs (resnet*, convnext*, "
        "efficientnet*, mobilenet*, regnet*) or Swin (swin_*)."
    )


def _flat(layers: list[nn.Module]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for layer in layers:
        found += layer.children() if type(layer) is nn.Sequential else [layer]
    return found


def _through(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
        if not isinstance(x, Tensor):
            raise SuiteError(
                "This method runs the encoder stage by stage and needs one tensor between blocks. "
                f"{type(block).__name__} returns a {type(x).__name__}. Choose another `model.encoder`, for example "
                "'resnet18'."
            )
    return x


def _from_tokens(tokens: Tensor, prefix: int, grid: Any) -> State:
    places = tokens[:, prefix:].unflatten(1, tuple(grid))
    return State(places.permute(0, 3, 1, 2).contiguous(), tokens[:, :prefix] if prefix else None)


def _to_tokens(state: State) -> Tensor:
    places = state.map.flatten(2).transpose(1, 2)
    return places if state.prefix is None else torch.cat((state.prefix, places), 1)
