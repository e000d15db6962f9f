"""The family `mlp`: encoders of vectors, for tables and observations of robots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.networks.blocks import per_task
from mtlbench.networks.decoder import VectorHead
from mtlbench.networks.family import Family, InputEncoder, Model, Parts
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import VECTORS

DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "plain": {"width": 128, "depth": 3, "dropout": 0.0},
    "residual": {"width": 128, "depth": 3, "dropout": 0.0, "mlp_ratio": 2.0},
}
"""Encoders of the family with their options."""


class LinearBlock(nn.Sequential):
    """Linear layer, LayerNorm, GELU and dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        """Builds the block.

        Args:
            inputs: Input features.
            outputs: Output features.
            dropout: Share of outputs that are dropped in training.
        """
        super().__init__(nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs), nn.GELU(), nn.Dropout(dropout))


class ResidualBlock(nn.Module):
    """x + mlp(norm(x)), a transformer's block without attention; parts have timm's names."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        """Builds the block.

        Args:
            width: Features of input and output.
            hidden: Hidden units of the MLP.
            dropout: Share of hidden units that are dropped in training.
        """
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.mlp: nn.Module = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., width)."""
        return x + self.mlp(self.norm2(x))


class VectorEncoder(InputEncoder):
    """A multi-layer perceptron: `depth` blocks of one width, with or without residual connections.

    Attributes:
        features: Length of the vectors that it takes.
        residual: Whether the blocks are residual; then a linear layer comes before them and a norm after them.
    """

    def __init__(
        self,
        features: int,
        *,
        residual: bool,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        mlp_ratio: float = 2.0,
    ) -> None:
        """Builds the encoder.

        Args:
            features: Length of the vectors.
            residual: Whether blocks are residual.
            width: Features between blocks.
            depth: Number of blocks.
            dropout: Share of units that are dropped in training.
            mlp_ratio: Hidden units of a residual block per feature.
        """
        super().__init__()
        self.features, self.residual, self.channels = features, residual, [width]
        if residual:
            self.embed: nn.Module = nn.Linear(features, width)
            hidden = max(1, round(mlp_ratio * width))
            self.blocks = nn.ModuleList(ResidualBlock(width, hidden, dropout) for _ in range(depth))
            self.norm: nn.Module = nn.LayerNorm(width)
        else:
            self.embed = self.norm = nn.Identity()
            self.blocks = nn.ModuleList(
                LinearBlock(width if index else features, width, dropout) for index in range(depth)
            )

    def normalise(self, inputs: Any) -> Tensor:
        """Returns vectors in the precision of the weights; data modules standardise the features.

        Args:
            inputs: (B, features), floating point.

        Raises:
            DataError: The vectors have another length.
        """
        if inputs.ndim != 2 or inputs.shape[1] != self.features:
            raise DataError(
                f"This encoder takes vectors (B, {self.features}). Found {tuple(inputs.shape)}. Give the features that "
                "the network was trained on, in their order."
            )
        return inputs.to(next(self.parameters()).dtype)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Returns one feature (B, width) of normalised vectors (B, features)."""
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        return [self.norm(x)]


class VectorNeck(nn.Module):
    """Maps the encoder's features to the width that all heads read. All tasks share it."""

    def __init__(self, inputs: int, width: int) -> None:
        """Builds the neck.

        Args:
            inputs: Channels of the encoder.
            width: Features of the result.
        """
        super().__init__()
        self.mix = LinearBlock(inputs, width)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns (B, width)."""
        return self.mix(features[-1])


class Vectors(Family):
    """Vectors of numbers and perceptrons."""

    name = "mlp"
    takes = VECTORS

    def check_encoder(self, name: str) -> None:
        """Checks a name against `DEFAULTS`."""
        if name not in DEFAULTS:
            raise SuiteError(unknown_name("encoder of the family mlp", name, DEFAULTS))

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks names and values of options against `DEFAULTS`."""
        for key, value in options.items() if name in DEFAULTS else ():
            if key not in DEFAULTS[name]:
                raise SuiteError(unknown_name(f"option of the encoder mlp:{name}", key, DEFAULTS[name]))
            whole = isinstance(DEFAULTS[name][key], int)
            number = isinstance(value, int) if whole else isinstance(value, int | float)
            low, high = (0, 1) if key == "dropout" else (1 if whole else 0, float("inf"))
            if isinstance(value, bool) or not number or not low <= value < high or (key == "mlp_ratio" and not value):
                kind = "a whole number" if whole else "a number"
                raise SuiteError(
                    f"{key} of the encoder mlp:{name} is {kind} from {low} to below {high}. Found {value!r}."
                )

    def parts(self, tasks: Mapping[str, Task], model: Model) -> Parts:
        """Returns a perceptron, a layer as neck, and one linear head per task."""
        self.check_encoder(model.name)
        self.check_options(model.name, model.options)
        self.weights_identity(model.name, model.weights)
        if dense := [name for name, task in tasks.items() if task.dense]:
            raise SuiteError(
                f"Dense tasks need images, because they predict a value for every pixel. {', '.join(dense)} are dense, "
                f"and {model.encoder} takes vectors. Leave these tasks out."
            )
        features = (model.inputs or {}).get("features", 0)
        if not features:
            raise SuiteError(
                f"{model.encoder} must know the length of its vectors. The data module gives none: return it from "
                "input_sizes as {'features': n}."
            )
        encoder = VectorEncoder(features, residual=model.name == "residual", **model.options)
        neck, width = VectorNeck(encoder.channels[-1], model.decoder_channels), model.decoder_channels
        return Parts(encoder, neck, per_task("head", tasks, lambda name: VectorHead(width, tasks[name].channels)))

    def block(self, width: int) -> nn.Module:
        """Returns a `LinearBlock`."""
        return LinearBlock(width, width)

    def example(self, model: Model, count: int = 1) -> Tensor:
        """Returns zeros (count, features)."""
        return torch.zeros(count, (model.inputs or {})["features"])

    def check(self, inputs: Any) -> None:
        """Checks that vectors are floating point (B, features)."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim != 2 or not len(inputs):
            found = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise DataError(
                f"Vectors are a floating-point tensor (B, features). Found {found}. Give x[None] of one vector, and "
                "torch.from_numpy(x).float() of an array."
            )
