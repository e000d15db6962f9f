"""A text transformer with sparse experts in its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.errors import SuiteError
from mtlbench.networks.experts.layer import ExpertLayer
from mtlbench.networks.experts.statistics import LayerStatistics
from mtlbench.networks.experts.trunk import ExpertOptions, ExpertTrunk
from mtlbench.networks.text_encoder import TextEncoder


class ExpertTransformer(ExpertTrunk):
    """Runs the blocks of a `TextEncoder`, some of them with experts. Padding reaches no router and no expert."""

    def __init__(self, encoder: TextEncoder, tasks: Sequence[str], options: ExpertOptions) -> None:
        """Replaces MLPs of the encoder's blocks.

        Args:
            encoder: A transformer of texts.
            tasks: Names of all tasks.
            options: Placement and routing.

        Raises:
            SuiteError: The MLPs have another activation than GELU, which experts have.
            MethodError: A value is outside its range.
        """
        if encoder.activation != "gelu":
            raise SuiteError(
                f"Experts replace MLPs with GELU. The encoder's activation is {encoder.activation}. Choose another "
                "encoder, for example transformers:minilm."
            )
        super().__init__(encoder, encoder.channels[0], tasks, options)

    def begin(self, inputs: Any) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Returns tokens (B, N, D) of a batch of texts, no features, and which tokens are not padding (B, N)."""
        inputs = self.encoder.normalise(inputs)
        x, found = self.run(self.encoder.embed(inputs), range(self.first), (), {}, inputs["mask"])
        return x, found, inputs["mask"]

    def run(
        self,
        x: Tensor,
        indices: range,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs some blocks; the positions of the tokens that are not padding are found only once."""
        places = present.flatten().nonzero()[:, 0] if len(indices) else None
        return super().run(x, indices, tasks, statistics, (present, places))

    def block(
        self,
        index: int,
        x: Tensor,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> Tensor:
        """Runs attention and MLP of a block."""
        block, (mask, places) = self.blocks[index], present
        x = block.attend(x, mask)
        if not isinstance(block.mlp, ExpertLayer):
            return block.transform(x)
        # Every task has the same texts, so its share of the tokens is equal, as a router expects it.
        flat = block.before(x).flatten(0, 1)
        tokens, statistics[f"block{index}.mlp"] = block.mlp(flat[places][:, None], tasks)
        whole = torch.zeros_like(flat, dtype=tokens.dtype).index_copy(0, places, tokens[:, 0])
        return block.add(x, whole.view_as(x))

    def features(self, x: Tensor, index: int, present: Any = None) -> list[Tensor]:
        """Returns `TextEncoder.summary` of the tokens after the last block."""
        return [self.encoder.summary(x, present[0])] if index == len(self.blocks) - 1 else []
