"""Costs of a shared network: multiply-adds and storage, computed from counts.

As usual, element-wise work (norms, activations, comparisons with the reference) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.networks.sharing.referenced_vit import ReferencedViT

VALUE_BITS = 32
"""Bits per stored number."""


def shared_macs(vit: ReferencedViT, changed: Mapping[str, float], kept: Mapping[str, int]) -> float:
    """Returns the multiply-adds of the linear layers per image, Σ changed inputs · d_out + changed weights · N.

    Args:
        vit: The encoder.
        changed: Entries per image that differ from their reference, by place; all entries if there is no reference.
        kept: Non-zero entries of ΔW by name of the weight; empty for the weights of the reference.
    """
    return sum(
        changed[layer.reads] * layer.outputs + kept.get(layer.weight, 0) * layer.tokens
        for layer in vit.layers().values()
    )


def dense_macs(vit: ReferencedViT) -> int:
    """Returns the multiply-adds of the linear layers without sharing per image, Σ N · d_in · d_out."""
    return sum(layer.tokens * layer.inputs * layer.outputs for layer in vit.layers().values())


def attention_macs(vit: ReferencedViT) -> int:
    """Returns the multiply-adds of all products of tokens with tokens per image. Sharing saves none of them."""
    # Q Kᵀ and the product with V take N² · D each. The input of the output projection has width D.
    queries = [layer for place, layer in vit.layers().items() if place.endswith(".proj")]
    return sum(2 * layer.tokens**2 * layer.inputs for layer in queries)


@torch.no_grad()
def decoder_macs(network: SharingNetwork) -> int:
    """Returns the multiply-adds of neck and heads per image."""
    model = network.encoder.model
    like = next(network.neck.parameters())
    maps = [like.new_zeros(1, model.embed_dim, *model.patch_embed.grid_size) for _ in network.neck.project]
    with FlopCounterMode(display=False) as counter:
        network.decode(maps, list(network.heads))
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Storage:
    """Storage that a sub-task needs in addition to its base.

    Attributes:
        kept: Number of non-zero entries of ΔW.
        entries: Number of all entries of ΔW.
        index_bits: Bits that encode the positions of the kept entries.
        decoder: Number of parameters of neck and heads, stored densely.
    """

    kept: int
    entries: int
    index_bits: int
    decoder: int

    @property
    def parameters(self) -> float:
        """Total storage as a number of parameters of `VALUE_BITS` bits."""
        return self.kept + self.index_bits / VALUE_BITS + self.decoder


def storage(network: SharingNetwork) -> Storage:
    """Counts the storage in addition to the base.

    The positions of a tensor's changed entries cost one bit per entry or one index per changed entry, whichever is
    smaller.
    """
    kept = {name: int(count) for name, count in network.deltas.kept().items()}
    sizes = {name: delta.value.numel() for name, delta in network.deltas.named()}
    bits = sum(min(sizes[name], kept[name] * math.ceil(math.log2(sizes[name]))) for name in kept)
    decoder = sum(p.numel() for part in (network.neck, network.heads) for p in part.parameters())
    return Storage(sum(kept.values()), sum(sizes.values()), bits, decoder)
