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


class GatedMlp(TextMlp):
    """second(activation(a) · b) with (a, b) = first(x), both of the hidden width: a gated linear unit."""

    def __init__(
        self, first: nn.Linear, activation: Callable[[Tensor], Tensor], second: nn.Linear, dropout: float = 0.0
    ) -> None:
        """Takes over the layers.

        Args:
            first: To twice the hidden width.
            activation: Of the first half.
            second: From the hidden width.
            dropout: Share of hidden units that are dropped in training.
        """
        super().__init__(first, activation, second)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., D)."""
        a, b = self.first(x).chunk(2, -1)
        return self.second(self.dropout(self.activation(a) * b))


class RotaryAttention(nn.Module):
    """Attention with rotary positions over all tokens of a text, or over the nearest ones.

    Attributes:
        window: Greatest distance of two tokens that attend to each other; 0 for any.
    """

    def __init__(
        self, attention: nn.Module, angles: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], window: int = 0
    ):
        """Takes over the library's attention.

        Args:
            attention: Called with tokens, cosine and sine of the positions, and a mask bool (B, 1, N, N).
            angles: Returns cosine and sine (1, N, d) for tokens (B, N, D) and positions (1, N).
            window: See the class.
        """
        super().__init__()
        self.attention, self.angles, self.window = attention, angles, window

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns (B, N, D) for tokens (B, N, D); only those in ``mask`` (B, N) are attended to."""
        places = torch.arange(x.shape[1], device=x.device)
        seen = mask[:, None, None].expand(-1, 1, x.shape[1], -1)
        if self.window:
            near = (places[:, None] - places).abs() <= self.window
            # A token of padding may have no text near it. It sees itself, because attending to no token would give NaN.
            seen = (seen & near) | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        return self.attention(x, position_embeddings=self.angles(x, places[None]), attention_mask=seen)[0]


class TextBlock(nn.Module):
    """norm1(x + attention(x)), then norm2(x + mlp(x)): the order of BERT and its relatives."""

    def __init__(self, attn: nn.Module, norm1: nn.Module, mlp: TextMlp, norm2: nn.Module, dropout: float) -> None:
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
        return self.add(x, self.mlp(self.before(x)))

    def before(self, x: Tensor) -> Tensor:
        """Returns what the MLP reads of tokens (B, N, D)."""
        return x

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after adding the output of the MLP."""
        return self.norm2(x + self.dropout(change))


class PreNormBlock(TextBlock):
    """x + attention(norm1(x)), then x + mlp(norm2(x)): the order of ModernBERT."""

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after the attention."""
        return x + self.dropout(self.attn(self.norm1(x), mask))

    def before(self, x: Tensor) -> Tensor:
        """Returns normalised tokens (B, N, D)."""
        return self.norm2(x)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """Returns tokens (B, N, D) after adding the output of the MLP."""
        return x + self.dropout(change)


class TextEncoder(InputEncoder):
    """Maps texts to the mean of their tokens after the last block, followed by the tokens if tasks need them.

    Attributes:
        vocabulary: Number of token ids that it knows.
        length: Most tokens of a text.
        activation: Name of the MLPs' activation.
        segmented: Whether it tells the two texts of a pair apart.
        tokenwise: Whether features contain those of every token.
    """

    def __init__(
        self, embeddings: nn.Module, blocks: list[TextBlock], *, vocabulary: int, length: int, width: int,
        activation: str, segmented: bool, tokenwise: bool = False, final: nn.Module | None = None,
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
            tokenwise: See the class.
            final: Norm after the last block; None if there is none.
        """
        super().__init__()
        self.final = final or nn.Identity()
        self.embeddings, self.blocks = embeddings, nn.ModuleList(blocks)
        self.vocabulary, self.length, self.activation, self.segmented = vocabulary, length, activation, segmented
        self.tokenwise, self.channels = tokenwise, [width]

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

    def summary(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean (B, D) of the tokens that are not padding; if `tokenwise`, with all tokens, (B, 1 + N, D).

        Args:
            x: Tokens (B, N, D) after the last block.
            mask: bool (B, N), which of them are not padding.
        """
        x = self.final(x)
        weights = mask[:, :, None].to(x)
        mean = (x * weights).sum(1) / weights.sum(1)
        return torch.cat([mean[:, None], x], 1) if self.tokenwise else mean

    def forward(self, inputs: Any) -> list[Tensor]:
        """Returns the features of a batch of texts, see `summary`."""
        x, mask = self.embed(inputs), inputs["mask"]
        for block in self.blocks:
            x = block(x, mask)
        return [self.summary(x, mask)]


def unpadded(predictions: Mapping[str, Tensor], tokenwise: Mapping[str, str], inputs: Any) -> dict[str, Tensor]:
    """Returns raw predictions whose scores are minus infinity at tokens that cannot be chosen.

    These are padding, and for the kind ``span`` also the first text of a pair, because answers are in the second.

    Args:
        predictions: Raw predictions by task.
        tokenwise: Tasks whose predictions are per token, (B, channels, N), with their kinds.
        inputs: The batch of texts.
    """
    found = dict(predictions)
    for name, kind in tokenwise.items():
        mask = inputs["mask"]
        if kind == "span" and "segments" in inputs:
            mask = mask & (inputs["segments"] == 1)
        found[name] = found[name][..., : mask.shape[1]].masked_fill(~mask[:, None], -torch.inf)
    return found


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
