"""A perceptron of residual blocks with sparse experts in them, for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mtlbench.errors import SuiteError
from mtlbench.networks.experts import LayerStatistics
from mtlbench.networks.experts.trunk import ExpertOptions, ExpertTrunk
from mtlbench.networks.vectors import VectorEncoder


class ExpertPerceptron(ExpertTrunk):
    """Runs the residual blocks of a `VectorEncoder`, some of them with experts. A vector is one token."""

    def __init__(self, encoder: VectorEncoder, tasks: Sequence[str], options: ExpertOptions) -> None:
        """Replaces MLPs of the encoder's blocks.

        Args:
            encoder: A residual one.
            tasks: Names of all tasks.
            options: Placement and routing.

        Raises:
            SuiteError: The encoder has no residual blocks.
            MethodError: A value is outside its range.
        """
        if not encoder.residual:
            raise SuiteError(
                "Experts replace MLPs of residual blocks. The encoder has none. Choose `model.encoder` mlp:residual."
            )
        super().__init__(encoder, encoder.channels[0], tasks, options)

    def begin(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Returns one token (B, 1, D) per vector (B, features), and no features."""
        x = self.encoder.embed(self.encoder.normalise(inputs))[:, None]
        return *self.run(x, range(self.first), (), {}), None

    def block(
        self,
        index: int,
        x: Tensor,
        tasks: Sequence[str],
        statistics: dict[str, LayerStatistics],
        present: Any = None,
    ) -> Tensor:
        """Runs the MLP of a block."""
        block = self.blocks[index]
        return x + self.part(block.mlp, block.norm2(x), tasks, f"block{index}.mlp", statistics)

    def features(self, x: Tensor, index: int, present: Any = None) -> list[Tensor]:
        """Returns the features (R, D) of the last block."""
        return [self.encoder.norm(x[:, 0])] if index == len(self.blocks) - 1 else []
