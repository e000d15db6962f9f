"""Rules on the Jacobian that remember something as large as a gradient, or one number per parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import GradientRule
from mtlbench.errors import MethodError

BLOCK = 1 << 16
"""Columns that `MemoryRule.remembered_gramian` copies to float64 at a time."""


class MemoryRule(GradientRule):
    """Base of rules with one tensor of state whose shape is known from the first step on.

    It is a buffer like every other, empty until then. A checkpoint carries it, and loading gives it the shape, dtype
    and values that were saved, so that a resumed run continues bit for bit. Heads always get their own gradients.

    Args:
        scale: See `GradientRule`.
    """

    memory: Tensor

    def __init__(self, *, scale: str = "sum"):
        super().__init__(scale=scale)

    def configure(self, tasks: int) -> None:
        """Creates the buffer, empty."""
        super().configure(tasks)
        self.register_buffer("memory", torch.empty(0))

    def recall(self, like: Tensor, *shape: int) -> Tensor:
        """Returns what is remembered, to be changed in place; zeros at first.

        Args:
            like: Tensor whose dtype and device the memory has.
            shape: Shape of the memory, the same in every step.

        Raises:
            MethodError: If another shape is remembered.
        """
        if self.memory.numel() == 0:
            self.memory = like.new_zeros(shape)
        if self.memory.shape != shape:
            raise MethodError(
                f"{type(self).__name__} works on the gradients of one network. Found {shape} numbers to remember "
                f"where there were {tuple(self.memory.shape)}. Make a new rule, or call configure()."
            )
        self.memory = self.memory.to(like)
        return self.memory

    def blend(self, weights: Tensor, active: Sequence[int]) -> Tensor:
        """Returns Σ w_i · row_i (P,) over the remembered rows of the active tasks.

        Args:
            weights: (A,), on any device.
            active: Indices of the A tasks.
        """
        every = self.memory.new_zeros(self.tasks)
        every[list(active)] = weights.to(every)
        return every @ self.memory

    @staticmethod
    def norm(row: Tensor) -> Tensor:
        """Returns the length () of a row (P,), in float64: the squares of 1e20 overflow in float32."""
        return torch.linalg.vector_norm(row, dtype=torch.float64)

    def remembered_gramian(self) -> Tensor:
        """Returns the inner products (T, T) of the remembered rows, in float64, on their device."""
        found = (self.memory @ self.memory.T).double()
        if found.isfinite().all():
            return found
        # Squares overflow in float32. Blocks of columns keep the copy in float64 small.
        parts = (part.double() for part in self.memory.split(BLOCK, dim=1))
        return torch.stack([part @ part.T for part in parts]).sum(0)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state.get(prefix + "memory")
        if saved is not None:
            self.memory = torch.empty_like(saved, device=self.memory.device)
        super()._load_from_state_dict(state, prefix, *rest)
