"""`stem_vit_tiny`: a small vision transformer behind a stem of convolutions, registered with timm.

A plain ViT cuts an image into patches and forgets where in a patch an edge was. The stem halves the image three times
with overlapping convolutions, learns faster from few images, and its map at stride 4 keeps the details for dense tasks.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8
"""Pixels between neighbouring tokens."""

FINE = 4
"""Pixels between neighbouring positions of the stem's map."""


class ConvStem(nn.Module):
    """Patch embedding by convolutions: `fine` gives a map at stride 4, `coarse` turns it into tokens at stride 8.

    Attributes:
        grid_size: Rows and columns of tokens.
        num_patches: Number of tokens.
    """

    def __init__(
        self, img_size: int | tuple[int, int], embed_dim: int, widths: tuple[int, int] = (32, 64), **_: Any
    ) -> None:
        """Builds the stem; timm passes further arguments, which a stem of convolutions does not need.

        Args:
            img_size: Height and width of images in pixels.
            embed_dim: Channels of a token.
            widths: Channels at strides 2 and 4.

        Raises:
            ValueError: The image is no multiple of the stride.
        """
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"Height and width must be multiples of {STRIDE}. Found {height} x {width}")
        self.img_size, self.patch_size = (height, width), (STRIDE, STRIDE)
        self.grid_size = (height // STRIDE, width // STRIDE)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        half, quarter = widths
        self.to_fine = nn.Sequential(_block(3, half, 2), _block(half, quarter, 2), _Residual(quarter))
        self.to_tokens = nn.Sequential(
            _block(quarter, embed_dim, 2), _Residual(embed_dim), nn.Conv2d(embed_dim, embed_dim, 1)
        )

    def fine(self, image: Tensor) -> Tensor:
        """Returns the map at stride 4, (B, widths[1], H / 4, W / 4), of an image (B, 3, H, W)."""
        return self.to_fine(image)

    def coarse(self, fine: Tensor) -> Tensor:
        """Returns tokens (B, N, embed_dim) from the map of `fine`."""
        return self.to_tokens(fine).flatten(2).transpose(1, 2)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Returns rows and columns of the tokens of an image, for timm."""
        return img_size[0] // STRIDE, img_size[1] // STRIDE

    def forward(self, image: Tensor) -> Tensor:
        """Returns tokens (B, N, embed_dim) of an image (B, 3, H, W)."""
        return self.coarse(self.fine(image))


class StemFeatures(FeatureGetterNet):
    """Returns the stem's map and then those of the chosen blocks.

    Attributes:
        out_indices: Indices of the chosen blocks; the stem's map is always the first.
        strides: Strides of all maps.
    """

    @property
    def strides(self) -> list[int]:
        """Strides of all maps."""
        return [FINE, *self.feature_info.reduction()]

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, N, D) before the first block, and the stem's map (B, C, H / 4, W / 4).

        Args:
            image: (B, 3, H, W) float, normalised.
        """
        stem: Any = self.model.patch_embed
        fine = stem.fine(image)
        return self.tokens(fine), fine

    def tokens(self, fine: Tensor) -> Tensor:
        """Returns tokens (B, N, D) before the first block, from the stem's map (B, C, H / 4, W / 4)."""
        model: Any = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed.coarse(fine))))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the maps of an image (B, 3, H, W), finest first."""
        tokens, fine = self.embed(x)
        maps = [fine]
        model: Any = self.model
        chosen: Any = self.out_indices
        for index, block in enumerate(model.blocks):
            tokens = block(tokens)
            if index in chosen:
                maps.append(tokens.transpose(1, 2).unflatten(2, model.patch_embed.grid_size))
        return maps


class _Residual(nn.Module):
    """GELU(x + two convolutions of x), with GroupNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.body(x))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.GELU())


default_cfgs = generate_default_cfgs(
    {
        "stem_vit_tiny.untrained": {
            "url": "",
            "input_size": (3, 48, 48),
            "fixed_input_size": True,
            "num_classes": 0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.to_fine.0.0",
            "classifier": "head",
        }
    }
)


@register_model
def stem_vit_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds four blocks of width 96 with four heads, without class token; 0.7 million parameters.

    Args:
        pretrained: Whether timm loads weights.
        **options: Options of timm's `VisionTransformer`.
    """
    chosen: dict[str, Any] = {"embed_dim": 96, "depth": 4, "num_heads": 4, **options}
    chosen |= {"embed_layer": ConvStem, "patch_size": STRIDE, "class_token": False, "global_pool": ""}
    chosen["final_norm"] = False  # Maps are read before it, so the weights need none.
    return build_model_with_cfg(
        VisionTransformer,
        "stem_vit_tiny",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": StemFeatures},
        **chosen,
    )
