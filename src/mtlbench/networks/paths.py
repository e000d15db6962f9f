"""A network as a path of components, each either trained or shared unchanged with the path that it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.blocks import seeded
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder_stages import Stages
from mtlbench.tasks import Task

EMBEDDING, NECK, HEAD, ADAPTER = "embedding", "neck", "head", "adapter"
"""Names of components. All others are blocks of the encoder, named by their place in it."""


class Adapter(nn.Module):
    """x + W₂ GELU(W₁ x), by 1 x 1 convolutions of a map; W₂ is zero at first, so that the layer is the identity."""

    def __init__(self, channels: int, width: int) -> None:
        """Builds the layer.

        Args:
            channels: Channels of the map.
            width: Channels between the two convolutions.
        """
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, channels, h, w)."""
        return x + self.up(F.gelu(self.down(x)))


class PathNetwork(DenseNetwork):
    """`DenseNetwork` whose encoder is a sequence of components, with adapters after some of its stages.

    Components are ``embedding`` (what comes before the first block), the blocks of the encoder, adapters, ``neck`` and
    ``head`` (all heads). Components that are not trained keep their weights and statistics bit for bit.

    Attributes:
        sizes: Parameters of every component, by name, in the order of the path.
        frozen: Components that are not trained.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        trained: Sequence[str] | None = None,
        adapters: Sequence[int] = (),
        width: int = 16,
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            trained: Components that are trained besides heads; None for all.
            adapters: Stages of the encoder that are followed by an adapter.
            width: Width of adapters.
            model: Further arguments of `DenseNetwork`.

        Raises:
            MethodError: There is no such component or stage.
            SuiteError: The encoder cannot be built, or cannot run stage by stage.
        """
        super().__init__(tasks, **model)
        self.stages = Stages(self.encoder)
        for stage in adapters:
            if not 0 <= stage < len(self.stages):
                raise MethodError(
                    f"An adapter follows one of the encoder's stages 0 to {len(self.stages) - 1}. Found {stage}."
                )
        self.adapters = nn.ModuleDict()
        for stage in sorted(adapters):
            with seeded(ADAPTER, str(stage)):
                self.adapters[str(stage)] = Adapter(self.encoder.channels[stage], width)
        # A layer without parts, such as the first convolution of a CNN, is no block of its own.
        blocks = {id(b) for blocks in self.stages.blocks for b in blocks if any(True for _ in b.children())}
        self._blocks = [name for name, module in self.encoder.named_modules() if id(module) in blocks]
        self.sizes: dict[str, int] = {}
        for name, parameter in self.named_parameters():
            component = self.component(name)
            self.sizes[component] = self.sizes.get(component, 0) + parameter.numel()
        for name in trained or ():
            if name not in self.sizes:
                raise MethodError(unknown_name("component", name, self.sizes))
        self.frozen = frozenset(() if trained is None else self.sizes.keys() - {*trained, HEAD})
        for name, parameter in self.named_parameters():
            if self.component(name) in self.frozen:
                parameter.requires_grad_(False)
        self.train()  # A trainer leaves modules in the mode in which they were built.

    def component(self, name: str) -> str:
        """Returns the component that a parameter, buffer or module belongs to, by its name in the network."""
        part, _, rest = name.partition(".")
        if part == "adapters":
            return ADAPTER + rest.partition(".")[0]
        if part in ("neck", "heads"):
            return NECK if part == "neck" else HEAD
        inside = (block for block in self._blocks if rest == block or rest.startswith(f"{block}."))
        return max(inside, key=len, default=EMBEDDING)

    def train(self, mode: bool = True) -> PathNetwork:
        """Sets the mode of all trained modules; the statistics of the others would otherwise change."""
        super().train(mode)
        for name, module in self.named_modules():
            if name and self.component(name) in self.frozen:
                module.training = False
        return self

    def shared_map(self, inputs: Any) -> Tensor:
        """Returns what the heads read; see `DenseNetwork.shared_map`."""
        return self.neck(list(self._maps(inputs)))

    def _maps(self, inputs: Any) -> Iterator[Tensor]:
        state = self.stages.start(self.encoder.normalise(inputs))
        for stage in range(len(self.stages)):
            state = self.stages.run(stage, state)
            if str(stage) in self.adapters:
                state = state.with_map(self.adapters[str(stage)](state.map))
            yield state.map

    @torch.no_grad()
    def take(self, parent: MTLNetwork) -> None:
        """Copies the components of another path; heads only of tasks that both have.

        Args:
            parent: A network on the same encoder, whose adapters this one has too.

        Raises:
            MethodError: If a component of the other path has no place here.
        """
        own, theirs = self.state_dict(), parent.state_dict()
        alien = [name for name in theirs if name not in own and not name.startswith("heads.")]
        if alien:
            raise MethodError(f"A path has all components of its parent. {alien[0]} has no place here.")
        for name in own.keys() & theirs.keys():
            own[name].copy_(theirs[name])


def layout(model: Mapping[str, Any]) -> tuple[list[str], int]:
    """Returns the names of the components of a path without adapters, in order, and the number of its stages.

    Args:
        model: Section ``model`` of a run.
    """
    with torch.random.fork_rng(devices=[]):
        network = PathNetwork({}, **{**model, "weights": None})
    return list(network.sizes), len(network.stages)
