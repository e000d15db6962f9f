"""A dense network whose weights are masked, and the choice of weights on which tasks agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.named import stored
from mtlbench.tasks import Task


class PrunedNetwork(DenseNetwork):
    """`DenseNetwork` with a mask for every trainable weight of its convolutions and linear layers.

    Masks are buffers, all True at first. Pruned weights are zeros in the weights themselves, so that a forward pass
    needs no mask. Biases, normalisation and embeddings are never pruned.

    Attributes:
        prunable: Names of the weights that have a mask, those of the trunk first.
        masks: The masks, by name of the weight with ``/`` in place of dots.
    """

    masks: Any

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            model: Further arguments of `DenseNetwork`.
        """
        super().__init__(tasks, **model)
        layers = ((n, m) for n, m in self.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        names = [f"{name}.weight" for name, module in layers if module.weight.requires_grad]
        self.prunable = sorted(names, key=lambda name: name.startswith("heads."))
        self.masks = nn.Module()
        for name in self.prunable:
            weight = self.get_parameter(name)
            self.masks.register_buffer(_key(name), torch.ones(weight.shape, dtype=torch.bool))

    def mask(self, name: str) -> Tensor:
        """Returns the mask of a weight, which may be written into."""
        return self.masks.get_buffer(_key(name))

    def of(self, task: str) -> list[str]:
        """Returns the names of the prunable weights of a task's head."""
        return [name for name in self.prunable if name.startswith(f"heads.{stored(task)}.")]

    def trunk(self) -> list[str]:
        """Returns the names of the prunable weights that all tasks share."""
        return [name for name in self.prunable if not name.startswith("heads.")]

    @torch.no_grad()
    def prune(self) -> None:
        """Sets all masked weights to zero."""
        for name in self.prunable:
            self.get_parameter(name).mul_(self.mask(name))

    def density(self) -> float:
        """Returns the share of prunable weights that are kept."""
        return sum(int(self.mask(n).sum()) for n in self.prunable) / sum(self.mask(n).numel() for n in self.prunable)

    def stored_bytes(self) -> int:
        """Returns the size of the network in float32: the weights that are kept, one bit per prunable weight, the rest.

        Other weights and statistics are stored whole.
        """
        masked = {id(self.get_parameter(name)) for name in self.prunable}
        rest = sum(p.numel() for p in self.parameters() if id(p) not in masked)
        rest += sum(b.numel() for b in self.buffers() if b.is_floating_point())
        kept = sum(int(self.mask(name).sum()) for name in self.prunable)
        return 4 * (kept + rest) + sum(math.ceil(self.mask(name).numel() / 8) for name in self.prunable)

    @torch.no_grad()
    def products(self, image: Tensor, tasks: Sequence[str]) -> tuple[int, int]:
        """Returns the FLOPs of the prunable layers in a forward pass, without and with masks; two per multiply-add.

        Args:
            image: (B, 3, H, W) uint8.
            tasks: Tasks to predict.
        """
        outputs: dict[str, int] = {}

        def record(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                outputs[name] = outputs.get(name, 0) + output.numel()

            return hook

        layers = {name: self.get_submodule(name.removesuffix(".weight")) for name in self.prunable}
        handles = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
        training = self.training
        try:
            self.eval()(image, list(tasks))  # Statistics stay as they are.
        finally:
            self.train(training)
            for handle in handles:
                handle.remove()
        # Each weight is used once per place of the output.
        places = {name: count // len(self.mask(name)) for name, count in outputs.items()}
        dense = sum(2 * count * self.mask(name).numel() for name, count in places.items())
        return dense, sum(2 * count * int(self.mask(name).sum()) for name, count in places.items())


def _key(name: str) -> str:
    return name.replace(".", "/")


def places(scores: Tensor) -> Tensor:
    """Returns the place (N,) of every weight in descending order of its score, from 1; equal scores in their order.

    Scores that differ by less than 2^-40 of the largest one count as equal, because rounding depends on the number of
    ranks.
    """
    scores = scores.double()
    order = (scores / scores.max().clamp(min=1e-300) * 2.0**40).round().argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(1, len(order) + 1, device=order.device))


def needed_ratios(trunk: Sequence[Tensor], heads: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns for every weight the smallest share of weights that some task must keep to keep this one.

    Each task orders the trunk and its own head by its scores alone. A weight of the trunk is pruned only if all tasks
    agree, so the task that ranks it highest decides.

    Args:
        trunk: Scores (S,) of the trunk's weights, per task.
        heads: Scores (H_i,) of the weights of each task's head.

    Returns:
        (S,) and (H_i,) per task, in (0, 1].
    """
    ranked = [places(torch.cat(pair)) for pair in zip(trunk, heads, strict=True)]
    shares = [place.double() / len(place) for place in ranked]
    size = len(trunk[0])
    return torch.stack([share[:size] for share in shares]).min(0).values, [share[size:] for share in shares]


def ratio_for(needed: Tensor, density: float) -> float:
    """Returns the smallest ratio that keeps at least a share of all weights, one weight or more.

    Args:
        needed: Result of `needed_ratios` for all weights, (N,).
        density: The share.
    """
    return float(needed.kthvalue(max(1, round(density * len(needed)))).values)


def overlaps(trunk: Sequence[Tensor], heads: Sequence[Tensor], ratio: float) -> Tensor:
    """Returns intersection over union (T, T) of the weights of the trunk that two tasks want to keep.

    Args:
        trunk: See `needed_ratios`.
        heads: See `needed_ratios`.
        ratio: Share of weights that each task keeps.
    """
    ranked = [places(torch.cat(pair)) for pair in zip(trunk, heads, strict=True)]
    wanted = torch.stack([place[: len(trunk[0])] <= ratio * len(place) for place in ranked]).double()
    both = wanted @ wanted.T
    size = wanted.sum(1)
    return both / (size[:, None] + size - both).clamp(min=1)


def layer_densities(shapes: Sequence[Sequence[int]], density: float, power: float = 0.9) -> list[float]:
    """Returns densities per layer by the rule of Erdős-Rényi kernels: (Σ shape / Π shape) ** power, at most 1.

    Args:
        shapes: Shapes of the weights.
        density: Share of all weights that is kept.
        power: See above.
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [(sum(shape) / size) ** power for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:
        # Layers whose density would exceed 1 are kept whole, and the others share what is left.
        budget = density * sum(sizes) - sum(sizes[i] for i in full)
        weight = sum(raw[i] * sizes[i] for i in range(len(raw)) if i not in full)
        factor = max(0.0, budget) / weight if weight else 0.0
        more = {i for i in range(len(raw)) if i not in full and factor * raw[i] > 1}
        if not more:
            return [1.0 if i in full else factor * value for i, value in enumerate(raw)]
        full |= more
