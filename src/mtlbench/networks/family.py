"""`Family`: what one kind of encoders takes as input, and how a network is built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mtlbench.errors import SuiteError
from mtlbench.tasks import Task


@dataclass(frozen=True)
class Model:
    """The section ``model`` of a run: the keys of a suite, and the sizes that the data module has added.

    Attributes:
        encoder: ``family:name``, or timm's name for an encoder of images.
        encoder_options: Further arguments of the encoder.
        weights: Pretrained weights, or None for random ones; see the family.
        decoder_channels: Width of what the heads read.
        upsampling: How dense predictions reach the size of the image; see `mtlbench.networks.decoder`.
        image_size: Height and width of images; empty for other inputs.
        inputs: `MTLDataModule.input_sizes`; None for images.
    """

    encoder: str = "resnet18"
    encoder_options: Mapping[str, Any] | None = None
    weights: str | None = None
    decoder_channels: int = 64
    upsampling: str = "bilinear"
    image_size: Sequence[int] = ()
    inputs: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        """Name of the encoder within its family."""
        return self.encoder.rpartition(":")[2]

    @property
    def options(self) -> dict[str, Any]:
        """Options of the encoder."""
        return dict(self.encoder_options or {})


class InputEncoder(nn.Module, ABC):
    """Maps inputs to features.

    Attributes:
        channels: Channels of every feature that `forward` returns.
    """

    channels: list[int]

    @abstractmethod
    def normalise(self, inputs: Any) -> Tensor:
        """Returns the inputs of a batch as the encoder's numbers, on the device.

        Raises:
            DataError: The encoder does not take inputs of this form.
        """

    @abstractmethod
    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Returns features of normalised inputs: maps (B, C, h, w) or vectors (B, C)."""


@dataclass(frozen=True)
class Parts:
    """The parts of a network with one shared encoder.

    Attributes:
        encoder: Maps inputs to features.
        neck: Maps the features to what all heads read. Its last block is called ``mix``.
        heads: One per task.
    """

    encoder: Any
    neck: Any
    heads: nn.ModuleDict


class Family(ABC):
    """One kind of encoders. It has no state.

    Attributes:
        name: What stands before the colon in ``model.encoder``.
        takes: The kind of inputs, as `MTLDataModule.INPUTS` names it.
    """

    name: ClassVar[str]
    takes: ClassVar[str]

    @abstractmethod
    def check_encoder(self, name: str) -> None:
        """Checks that the family has an encoder of this name.

        Raises:
            SuiteError: If not.
        """

    @abstractmethod
    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks the options of an encoder, as far as that is possible without building it.

        Raises:
            SuiteError: An option is unknown or has no value that it may have.
        """

    def weights_identity(self, name: str, weights: str | None) -> str:
        """Identifies an encoder's initial weights in a run's identity. Default: random weights only.

        Raises:
            SuiteError: There are no such weights.
        """
        if weights is None:
            return "random"
        raise SuiteError(f"Encoders of the family {self.name} have no pretrained weights. Use `weights: null`.")

    def widened(self, name: str, options: Mapping[str, Any], ratio: float) -> tuple[str, dict[str, Any]]:
        """Returns encoder and options of a transformer whose MLPs have ``ratio`` hidden units per unit of a token.

        Default: the option ``mlp_ratio`` of timm's transformers; encoders without it refuse it when they are built.
        """
        return name, {**options, "mlp_ratio": ratio}

    @abstractmethod
    def parts(self, tasks: Mapping[str, Task], model: Model) -> Parts:
        """Returns encoder, neck and heads, whose weights are drawn in this order.

        Raises:
            SuiteError: A part cannot be built.
        """

    @abstractmethod
    def block(self, width: int) -> nn.Module:
        """Returns a block that maps what the heads read to the same shape: an expert of `mmoe` and `ple`."""

    @abstractmethod
    def example(self, model: Model, count: int = 1) -> Any:
        """Returns the inputs of a batch of so many samples, all zero, for counting costs."""

    @abstractmethod
    def check(self, inputs: Any) -> None:
        """Checks the inputs of a batch that a user gives to a trained network.

        Raises:
            DataError: They have another form.
        """

    def check_maps(self, inputs: Any, maps: Mapping[str, Tensor]) -> None:
        """Checks dense predictions against the inputs.

        Raises:
            DataError: They differ in size. By default there are none.
        """
        return
