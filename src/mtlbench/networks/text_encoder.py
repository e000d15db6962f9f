"""Text transformers as blocks of plain modules, whose parts come from the `transformers` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import DataError
from mtlbench.networks.family import InputEncoder


class TextAttention(nn.Module):
    """Multi-head attention over the tokens of a text, without its padding."""

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int, dropout: float):
        """Takes over the four matrices.

        Args:
            query: Linear layer of width D, as are the next three.
            key: Makes keys.
            value: Makes values.
            out: Maps the heads' results.
            heads: Number of heads.
            dropout: Share of attention weights that are dropped in training.
        """
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns (B, N, D) for tokens (B, N, D); only those in ``mask`` (B, N) are attended to."""
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        share = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, mask[:, None, None], dropout_p=share)
        return self.out(found.transpose(1, 2).flatten(2))


class TextMlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, first: nn.Linear, activation: Callable[[Tensor], Tensor], second: nn.Linear) -> None:
        """Takes over the layers."""
        super().__init__()
        self.first, self.activation, self.second = first, activation, second

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., D)."""
        return self.second(self.activation(self.first(x)))


class TextBlock(nn.Module):
    """norm1(x + attention(x)), then norm2(x + mlp(x)): the order of BERT and its relatives."""

    def __init__(self, attn: TextAttention, norm1: nn.Module, mlp: TextMlp, norm2: nn.Module, dropout: float) -> None:
        """Takes over the parts.

        Args:
            attn: Attention.
            norm1: Norm after the attention.
            mlp: MLP; `ExpertTrunk` may replace it.
            norm2: Norm after the MLP.
            dropout: Share of numbers of attention and MLP that are dropped in training.
        """
        super().__init__()
        self.attn, self.norm1, self.norm2, self.dropout = attn, norm1, norm2, nn.Dropout(dropout)
        self.mlp: nn.Module = mlp

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns tokens (B, N, D); only those in ``mask`` (B, N) are attended to."""
        return self.transform(self.attend(x, mask))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after the attention."""
        return self.norm1(x + self.dropout(self.attn(x, mask)))

    def transform(self, x: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after the MLP."""
        return self.add(x, self.mlp(x))

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after adding the output of the MLP."""
        return self.norm2(x + self.dropout(change))


class TextEncoder(InputEncoder):
    """Maps texts to the mean of their tokens after the last block.

    Attributes:
        vocabulary: Number of token ids that it knows.
        length: Most tokens of a text.
        activation: Name of the MLPs' activation.
        segmented: Whether it tells the two texts of a pair apart.
    """

    def __init__(
        self, embeddings: nn.Module, blocks: list[TextBlock], *, vocabulary: int, length: int, width: int,
        activation: str, segmented: bool,
    ) -> None:  # fmt: skip
        """Takes over the parts.

        Args:
            embeddings: Maps ``input_ids`` and, if ``segmented``, ``token_type_ids`` to (B, N, D).
            blocks: Blocks.
            vocabulary: See the class.
            length: See the class.
            width: D.
            activation: See the class.
            segmented: See the class.
        """
        super().__init__()
        self.embeddings, self.blocks = embeddings, nn.ModuleList(blocks)
        self.vocabulary, self.length, self.activation, self.segmented = vocabulary, length, activation, segmented
        self.channels = [width]

    def normalise(self, inputs: Any) -> Any:
        """Returns the inputs unchanged.

        Raises:
            DataError: They are no batch of texts, or too long.
        """
        if fault := text_fault(inputs):
            raise DataError(fault)
        if inputs["tokens"].shape[1] > self.length:
            raise DataError(
                f"This encoder takes texts of at most {self.length} tokens. Found {inputs['tokens'].shape[1]}. Cut "
                "them, or raise data.options.length and train anew."
            )
        return inputs

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns tokens (B, N, D) before the first block."""
        more = {"token_type_ids": inputs["segments"]} if self.segmented and "segments" in inputs else {}
        return self.embeddings(input_ids=inputs["tokens"], **more)

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean (B, D) of the tokens (B, N, D) that are not padding."""
        weights = mask[:, :, None].to(x)
        return (x * weights).sum(1) / weights.sum(1)

    def forward(self, inputs: Any) -> list[Tensor]:
        """Returns the feature vectors (B, D) of a batch of texts."""
        x, mask = self.embed(inputs), inputs["mask"]
        for block in self.blocks:
            x = block(x, mask)
        return [self.pool(x, mask)]


def text_fault(inputs: Any) -> str | None:
    """Finds why inputs are not a batch of texts; None if they are one."""
    tokens = inputs.get("tokens") if isinstance(inputs, Mapping) else None
    mask = inputs.get("mask") if isinstance(inputs, Mapping) else None
    rule = "A batch of texts is a mapping with `tokens`, int64 (B, N), and `mask`, bool (B, N)"
    if not isinstance(tokens, Tensor) or not isinstance(mask, Tensor):
        found = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        return f"{rule}. Found {found}. Make one of samples with mtlbench.tasks.inputs.padded."
    good = tokens.ndim == 2 and tokens.dtype == torch.int64 and tokens.numel() and mask.dtype == torch.bool
    if not good or mask.shape != tokens.shape:
        found = f"{tokens.dtype} {tuple(tokens.shape)} and {mask.dtype} {tuple(mask.shape)}"
        return f"{rule}. Found {found}. Make one of samples with mtlbench.tasks.inputs.padded."
    return None
