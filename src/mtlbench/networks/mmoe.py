"""MMoE: dense experts after the neck, combined by one gate per task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import MethodError
from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import per_task, pooled
from mtlbench.networks.dense import DenseNetwork
from mtlbench.tasks import Task


class SoftmaxGate(nn.Module):
    """softmax(W mean(x)), which gives one mixture per sample."""

    def __init__(self, width: int, experts: int) -> None:
        """Builds the gate.

        Args:
            width: Channels of the input map.
            experts: Number of experts E.
        """
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns non-negative weights (B, E) that sum to 1, at least float32.

        Args:
            x: (B, width, h, w), or (B, width).
        """
        return _precisely(self.linear, x).softmax(1)


class DSelectGate(nn.Module):
    """k selectors, each of which chooses one of E experts by a differentiable binary code, mixed by a softmax.

    A bit with logit t is 1 with weight S(t), the smooth step: 0 below -γ/2, 1 above γ/2, and cubic in between. The
    weight of an expert in a selector is the product over the bits of its index. Once all bits are 0 or 1, the selector
    has chosen one expert.
    """

    codes: Tensor

    def __init__(self, width: int, experts: int, top_k: int, gamma: float) -> None:
        """Builds the gate.

        Args:
            width: Channels of the input map.
            experts: Number of experts E, a power of 2 and at least 2.
            top_k: Selectors k, 1..E.
            gamma: Width γ > 0 of the step.

        Raises:
            MethodError: A value is outside its range.
        """
        super().__init__()
        bits = max(1, experts - 1).bit_length()
        if experts != 1 << bits:
            raise MethodError(f"DSelect-k encodes experts in bits, so experts must be 2, 4, 8, ... Found {experts}.")
        if not 1 <= top_k <= experts:
            raise MethodError(
                f"top_k must be in 1..experts. Found top_k={top_k}, experts={experts}. Change one of them."
            )
        if not 0 < gamma < math.inf:
            raise MethodError(f"gamma must be positive and finite. Found {gamma}. The default is 1.")
        self.top_k, self.gamma = top_k, gamma
        self.choose = nn.Linear(width, top_k * bits)
        self.weigh = nn.Linear(width, top_k, bias=False)
        # Small logits start inside the smooth step, where bits have a gradient.
        for parameter in self.choose.parameters():
            nn.init.uniform_(parameter, -gamma / 100, gamma / 100)
        codes = torch.arange(experts)[:, None] >> torch.arange(bits) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)  # (E, bits)

    def selectors(self, x: Tensor) -> Tensor:
        """Returns the weight of each expert in each selector, (B, k, E). Weights sum to 1 over the experts.

        Args:
            x: (B, width, h, w).
        """
        ones = smooth_step(_precisely(self.choose, x).unflatten(1, (self.top_k, 1, -1)), self.gamma)
        return torch.where(self.codes, ones, 1 - ones).prod(3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns weights (B, E) like `SoftmaxGate`; at most k differ from 0 once all bits are 0 or 1."""
        return (_precisely(self.weigh, x).softmax(1).unsqueeze(2) * self.selectors(x)).sum(1)


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """Returns -2 t³ / γ³ + 3 t / (2 γ) + ½ element-wise for t in [-γ/2, γ/2], 0 below and 1 above."""
    s = (t / gamma).clamp(-0.5, 0.5)
    return -2 * s**3 + 1.5 * s + 0.5


def selector_entropy(selectors: Tensor) -> Tensor:
    """Returns the entropy of (B, k, E) selectors in nats, summed over selectors and averaged over images."""
    # At r = 0 the derivative of -r ln r is infinite, so r is kept above 0.
    return torch.special.entr(selectors.clamp(min=1e-12)).sum((1, 2)).mean()


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """Returns Σ_e weights_e · experts_e: (B, C, h, w), or (B, C).

    Args:
        weights: (B, E).
        experts: (B, E, C, h, w), or (B, E, C).
    """
    return (weights.to(experts.dtype).view(*weights.shape, *[1] * (experts.ndim - 2)) * experts).sum(1)


class MMoENetwork(DenseNetwork):
    """`DenseNetwork` with E blocks of its family after the neck. Each head reads the mixture of its task's gate.

    `Outputs.representation` is the bank (B, E + 1, C, h, w), or (B, E + 1, C): the neck's output followed by those of
    the experts.
    `Outputs.statistics["gates"]` holds the weights (B, E) by task.
    """

    # Indexed by task. mypy would treat the entries as plain modules.
    gates: Any

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        experts: int = 3,
        gate: Callable[[int, int], nn.Module] = SoftmaxGate,
        decoder_channels: int = 64,
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            experts: Number of experts E >= 1.
            gate: Builds a task's gate from the number of channels and E.
            decoder_channels: Channels C of neck, experts and heads.
            model: Further arguments of `DenseNetwork`.

        Raises:
            SuiteError: See `build_encoder`.
            MethodError: ``experts`` is outside its range.
        """
        super().__init__(tasks, decoder_channels=decoder_channels, **model)
        if not experts >= 1:
            raise MethodError(f"experts must be at least 1. Found {experts}. The default is 3.")
        self.experts = nn.ModuleList(self.family.block(decoder_channels) for _ in range(experts))
        self.gates = per_task("gate", tasks, lambda _: gate(decoder_channels, experts))

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        shared = self.shared_map(inputs)
        # Gates read the neck's map through the bank too, so that the bank carries all gradients to shared parameters.
        bank = torch.stack([shared, *(expert(shared) for expert in self.experts)], 1)
        gates = {task: self.gates[task](bank[:, 0]) for task in tasks}
        predictions = {task: self.heads[task](mix(gates[task], bank[:, 1:])) for task in tasks}
        return Outputs(predictions, bank, {"gates": gates})

    def sample_features(self, representation: Tensor) -> Tensor:
        """Returns the neck's features, which come first in the bank, as one vector (B, C) per sample."""
        return pooled(representation[:, 0])

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the experts."""
        return list(self.experts.parameters())

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and gate."""
        return [self.heads[task], self.gates[task]]


def _precisely(linear: nn.Linear, x: Tensor) -> Tensor:
    """Returns the layer's output for the mean of a map, computed in at least float32 even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        mean = pooled(x.to(torch.promote_types(x.dtype, torch.float32)))
        return F.linear(mean, linear.weight, linear.bias)
