"""Sparse changes of frozen weights, pruned by learned hard-concrete gates: W = W_b + z z' Δ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

LOW, HIGH = -1.5, 1.5
"""Interval to which a gate is stretched before it is clipped to [0, 1]."""

START = 5.0
"""Initial logit of a gate. Such a gate is open in 99 % of all draws."""


def stretched(share: Tensor) -> Tensor:
    """Returns the gate in [0, 1] for a value in (0, 1), which is stretched to [LOW, HIGH] and clipped."""
    # Stretching makes exact zeros and ones likely. A sigmoid alone would never reach them.
    return (share * (HIGH - LOW) + LOW).clamp(0, 1)


def settled_gate(logit: Tensor) -> Tensor:
    """Returns the gate without noise, clamp(sigmoid(α) (HIGH - LOW) + LOW, 0, 1), positive if α > log(-LOW / HIGH).

    Args:
        logit: α, any shape.
    """
    return stretched(logit.sigmoid())


def drawn_gate(logit: Tensor, uniform: Tensor) -> Tensor:
    """Returns a sample of the hard-concrete gate with temperature 1.

    Args:
        logit: α, any shape.
        uniform: Uniform numbers in [0, 1) of the same shape.
    """
    return stretched((logit + uniform.logit()).sigmoid())


def open_probability(logit: Tensor) -> Tensor:
    """Returns the probability that a drawn gate is positive, sigmoid(α - log(-LOW / HIGH)).

    Args:
        logit: α, any shape.
    """
    return (logit - math.log(-LOW / HIGH)).sigmoid()


class SparseDelta(nn.Module):
    """A sparse change of one frozen tensor, with a value and a gate per entry and a gate for the whole tensor.

    Attributes:
        value: Δ, initially zero.
        logit: Logit α of every entry's gate.
        group: Logit α of the tensor's gate, ().
    """

    def __init__(self, weight: Tensor) -> None:
        """Starts without any change.

        Args:
            weight: The frozen tensor.
        """
        super().__init__()
        self.value = nn.Parameter(torch.zeros_like(weight))
        self.logit = nn.Parameter(torch.full_like(weight, START))
        self.group = nn.Parameter(weight.new_tensor(START))
        self._noise: tuple[Tensor, Tensor] | None = None

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the gates that training uses until the next call. Without a generator, gates have no noise.

        Args:
            generator: Generator on the device of the parameters, in the same state on all ranks.
        """

        def uniform(like: Tensor) -> Tensor:
            return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)

        self._noise = (uniform(self.logit), uniform(self.group)) if generator is not None else None

    def forward(self) -> Tensor:
        """Returns the change z z' Δ, with gates without noise in evaluation."""
        if self._noise is None or not self.training:
            return settled_gate(self.logit) * settled_gate(self.group) * self.value
        return drawn_gate(self.logit, self._noise[0]) * drawn_gate(self.group, self._noise[1]) * self.value

    @torch.no_grad()
    def settle(self) -> None:
        """Ends pruning: gates become 0 or 1 without changing W, and closed gates stay closed.

        The decision does not depend on a draw. Another call changes nothing.
        """
        # The present gate is multiplied into the value, so that a gate of 1 gives the same W.
        gate = settled_gate(self.logit) * settled_gate(self.group)
        self.value.mul_(gate)
        self.logit.copy_(torch.where(gate > 0, START, -START))
        self.group.fill_(START)


class SparseDeltas(nn.Module):
    """The sparse changes of several tensors, by name."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Starts without any change.

        Args:
            weights: The frozen tensors by name.
        """
        super().__init__()
        # PyTorch does not allow dots in the name of a module.
        self.changes = nn.ModuleDict({name.replace(".", "/"): SparseDelta(w) for name, w in weights.items()})

    def forward(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the changed tensors by name, W_b + z z' Δ.

        Args:
            weights: W_b by name.
        """
        return {name: weights[name] + delta() for name, delta in self.named()}

    def named(self) -> Iterator[tuple[str, SparseDelta]]:
        """Yields every change with the name of its tensor."""
        for key, delta in self.changes.items():
            yield key.replace("/", "."), delta  # type: ignore[misc]

    def gates(self) -> list[nn.Parameter]:
        """Returns the logits of all gates."""
        return [logit for _, delta in self.named() for logit in (delta.logit, delta.group)]

    def values(self) -> list[nn.Parameter]:
        """Returns Δ of all tensors."""
        return [delta.value for _, delta in self.named()]

    def draw(self, generator: torch.Generator | None) -> None:
        """See `SparseDelta.draw`."""
        for _, delta in self.named():
            delta.draw(generator)

    def settle(self) -> None:
        """See `SparseDelta.settle`."""
        for _, delta in self.named():
            delta.settle()

    def openness(self) -> Tensor:
        """Returns Σ P(gate > 0) over all gates divided by the number of entries, (); about 1 if all gates are open."""
        opens = torch.stack([open_probability(logit).sum() for logit in self.gates()]).sum()
        return opens / sum(value.numel() for value in self.values())

    @torch.no_grad()
    def kept(self) -> dict[str, Tensor]:
        """Returns the number of changed entries of every tensor by name, () int64 each."""
        return {
            name: (settled_gate(delta.logit) * settled_gate(delta.group) * delta.value).count_nonzero()
            for name, delta in self.named()
        }
