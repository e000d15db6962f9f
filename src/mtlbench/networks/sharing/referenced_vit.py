"""A vision transformer whose activations are replaced by reference activations wherever they differ little.

References are the activations of an earlier pass: of the base task on the same image, or of the same network on the
previous frame. An activation that equals its reference need not be computed. For a linear layer W, with W_b the weights
of the reference, W x = W_b x_ref + W_b (x - x_ref) + (W - W_b) x; see `linear_from_reference`. Here all values are
computed densely and then compared, so the saving is counted (`costs.py`) but not realised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.networks.encoder import Encoder

Activations = Mapping[str, Tensor]
"""Activations by place: ``pixels`` (B, 3, H, W), ``tokens`` and ``block<i>.<part>`` (B, N, width) for the parts in
`ReferencedViT.PARTS`."""

Threshold = float | Mapping[str, float]
"""One threshold for all places, or thresholds by place. Places that are not named have threshold 0."""


def held(value: Tensor, reference: Tensor, threshold: float) -> Tensor:
    """Replaces every entry that differs from its reference by less than the threshold with the reference.

    Args:
        value: Any shape.
        reference: Tensor of the same shape.
        threshold: Threshold θ >= 0. 0 changes nothing, and infinity returns the reference.
    """
    return torch.where((value - reference).abs() < threshold, reference, value)


def linear_from_reference(
    x: Tensor, reference: Tensor, output: Tensor, weight: Tensor, change: Tensor | None = None
) -> Tensor:
    """Returns W x + b as y_ref + W_b (x - x_ref) + ΔW x, which is exact up to rounding.

    Rows (tokens) that equal their reference are left out of the first product. Without ΔW they cost nothing.

    Args:
        x: Input (R, d_in).
        reference: Input of the reference pass, x_ref (R, d_in).
        output: Output of the reference pass, y_ref = W_b x_ref + b (R, d_out).
        weight: W_b (d_out, d_in).
        change: ΔW (d_out, d_in), dense or sparse CSR; None if there is none. The caller must add a changed bias.
    """
    delta = x - reference
    rows = (delta != 0).any(1).nonzero()[:, 0]
    y = output.index_add(0, rows, delta[rows] @ weight.T)
    return y if change is None else y + (change @ x.T).T


@dataclass
class Trace:
    """The record of one forward pass.

    Attributes:
        references: Activations to which those of the pass are held, by place. A place without a reference is free.
        threshold: See `held`.
        activations: Activations that the pass used at every place, after they were held.
        maps: Feature maps of the encoder, (B, D, h, w) each.
    """

    references: Activations = field(default_factory=dict)
    threshold: Threshold = 0.0
    activations: dict[str, Tensor] = field(default_factory=dict)
    maps: list[Tensor] = field(default_factory=list)

    def hold(self, place: str, value: Tensor) -> Tensor:
        """Holds a value to its reference, records it, and returns the value for the pass to use."""
        if place in self.references:
            threshold = self.threshold.get(place, 0.0) if isinstance(self.threshold, Mapping) else self.threshold
            value = held(value, self.references[place], threshold)
        self.activations[place] = value
        return value

    def changed(self) -> dict[str, Tensor]:
        """Returns the number of entries that differ from their reference, by place, () int64 each."""
        return {p: (self.activations[p] != r).sum() for p, r in self.references.items() if p in self.activations}


@dataclass(frozen=True)
class Layer:
    """Sizes of a linear layer of the transformer.

    Attributes:
        reads: Place of the layer's input.
        weight: Name of the layer's weight among the parameters of the `ReferencedViT`.
        tokens: Rows per image, N.
        inputs: d_in.
        outputs: d_out.
    """

    reads: str
    weight: str
    tokens: int
    inputs: int
    outputs: int


class ReferencedViT(nn.Module):
    """Runs an `Encoder`'s vision transformer and holds its activations to references.

    The outputs of all linear layers are held, and also those of norms, attention and the activation function, because
    these spread a change of one entry over others. Dropout and drop path are off, because references have none.

    Attributes:
        factors: Factor on a single θ by place; empty for 1 everywhere. See `set_factors`.
    """

    PARTS = ("norm1", "qkv", "attention", "proj", "norm2", "fc1", "act", "fc2")

    def __init__(self, encoder: Encoder) -> None:
        """Wraps an encoder.

        Args:
            encoder: Encoder of a timm `VisionTransformer` with ordinary blocks.

        Raises:
            SuiteError: The encoder is another network.
        """
        super().__init__()
        self.encoder = encoder
        self.factors: dict[str, float] = {}
        _check(encoder)
        self.eval()

    def train(self, mode: bool = True) -> ReferencedViT:
        """Keeps the network in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, image: Tensor, references: Activations | None = None, threshold: Threshold = 0.0) -> Trace:
        """Runs the transformer and returns the trace.

        Args:
            image: (B, 3, H, W) uint8, RGB.
            references: Activations of an earlier pass on the same number of images, at all or some places.
            threshold: Threshold θ; see `held`.
        """
        if self.factors and not isinstance(threshold, Mapping):
            # A factor of 0 switches a place off even at an infinite threshold, where the product would be NaN.
            threshold = {place: threshold * factor if factor else 0.0 for place, factor in self.factors.items()}
        trace = Trace(references or {}, threshold)
        model = self.model
        pixels = trace.hold("pixels", self.encoder.normalise(image))
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))
        x = trace.hold("tokens", x)
        for index, block in enumerate(model.blocks):
            x = _run_block(block, x, trace, f"block{index}")
            if index in self.encoder.trunk.out_indices:
                trace.maps.append(self._map(x))
        return trace

    def set_factors(self, factors: Mapping[str, float]) -> None:
        """Sets factors on θ for individual places.

        Args:
            factors: Factors >= 0 by place (``block3.qkv``), part (``qkv``) or block (``block3``). The most specific
                name applies. A place that is not named has factor 1. A factor of 0 holds nothing.

        Raises:
            SuiteError: A place, part or block does not exist.
        """
        blocks = {place.partition(".")[0] for place in self.places}
        known = {*self.places, *self.PARTS, *blocks}
        if unknown := [unknown_name("place", name, known) for name in factors if name not in known]:
            raise SuiteError("\n".join(unknown))

        def factor(place: str) -> float:
            block, _, part = place.partition(".")
            return next((factors[name] for name in (place, part, block) if name in factors), 1.0)

        self.factors = {place: factor(place) for place in self.places} if factors else {}

    @property
    def model(self) -> Any:
        """The timm transformer."""
        return self.encoder.trunk.model

    @property
    def places(self) -> list[str]:
        """All places in the order of the pass."""
        blocks = [f"block{i}.{part}" for i in range(len(self.model.blocks)) for part in self.PARTS]
        return ["pixels", "tokens", *blocks]

    def layers(self) -> dict[str, Layer]:
        """Returns all linear layers by the place of their output, in the order of the pass."""
        model = self.model
        # The patch embedding is a convolution whose stride equals its kernel, so it is a linear layer on patches.
        height, width = model.patch_embed.grid_size
        path, tokens = "encoder.trunk.model", height * width + model.num_prefix_tokens
        conv = model.patch_embed.proj
        inputs = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        embedding = Layer("pixels", f"{path}.patch_embed.proj.weight", height * width, inputs, conv.out_channels)
        found = {"tokens": embedding}
        for i, block in enumerate(model.blocks):
            for part, reads, module in _LINEAR:
                linear: Any = block.get_submodule(module)
                found[f"block{i}.{part}"] = Layer(
                    f"block{i}.{reads}",
                    f"{path}.blocks.{i}.{module}.weight",
                    tokens,
                    linear.in_features,
                    linear.out_features,
                )
        return found

    def sizes(self) -> dict[str, int]:
        """Returns the number of activations of one image, by place."""
        found: dict[str, int] = {}
        for place, layer in self.layers().items():
            found |= {layer.reads: layer.tokens * layer.inputs, place: layer.tokens * layer.outputs}
        # Class and register tokens are added after the patches are embedded.
        found["tokens"] = found["block0.norm1"]
        return {place: found[place] for place in self.places}

    def _map(self, x: Tensor) -> Tensor:
        model = self.model
        return x[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, tuple(model.patch_embed.grid_size))


_LINEAR = (
    ("qkv", "norm1", "attn.qkv"),
    ("proj", "attention", "attn.proj"),
    ("fc1", "norm2", "mlp.fc1"),
    ("fc2", "act", "mlp.fc2"),
)


def _run_block(block: Any, x: Tensor, trace: Trace, name: str) -> Tensor:
    def hold(part: str, value: Tensor) -> Tensor:
        return trace.hold(f"{name}.{part}", value)

    qkv = hold("qkv", block.attn.qkv(hold("norm1", block.norm1(x))))
    attention = hold("attention", _attend(block.attn, qkv))
    # A branch is held after its scale, so that at an infinite threshold a changed scale has no effect.
    x = x + hold("proj", block.ls1(block.attn.proj(attention)))
    hidden = hold("fc1", block.mlp.fc1(hold("norm2", block.norm2(x))))
    active = hold("act", block.mlp.norm(block.mlp.act(hidden)))
    return x + hold("fc2", block.ls2(block.mlp.fc2(active)))


def _attend(attention: Any, qkv: Tensor) -> Tensor:
    """Returns the concatenated attention heads (B, N, D') for queries, keys and values (B, N, 3 · D')."""
    # timm's attention is split here, because its inputs and outputs are held separately.
    q, k, v = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
    return attention.norm(y.transpose(1, 2).flatten(2))


def _check(encoder: Encoder) -> None:
    model = getattr(encoder.trunk, "model", None)
    if isinstance(model, VisionTransformer) and _embeds_patches(model) and all(map(_ordinary, model.blocks)):
        return
    kinds = ", ".join(_kinds(getattr(model, "blocks", ()))) or "other parts"
    raise SuiteError(
        "Computation sharing needs a plain vision transformer: timm's VisionTransformer with ordinary blocks "
        f"(attention, MLP). This encoder is a {type(model or encoder.trunk).__name__} of {kinds}. Choose another "
        "`model.encoder`, for example 'vit_tiny_patch16_224'."
    )


def _embeds_patches(model: Any) -> bool:
    conv = getattr(model.patch_embed, "proj", None)
    return type(model.patch_embed) is PatchEmbed and isinstance(conv, nn.Conv2d) and conv.kernel_size == conv.stride


def _ordinary(block: Any) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    return getattr(block.attn, "gate", None) is None and isinstance(block.mlp.fc1, nn.Linear)


def _kinds(blocks: Sequence[Any]) -> list[str]:
    parts = [(block, getattr(block, "attn", None), getattr(block, "mlp", None)) for block in blocks]
    return sorted({type(part).__name__ for group in parts for part in group if part is not None})
