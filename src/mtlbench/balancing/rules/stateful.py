"""Base of rules on the Jacobian whose state is as large as the gradients or has one number per parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import GradientRule
from mtlbench.errors import MethodError

BLOCK = 1 << 16
"""Number of columns that `MemoryRule.remembered_gramian` copies to float64 at a time."""


class MemoryRule(GradientRule):
    """Base of rules with one tensor of state whose shape is unknown before the first step.

    The state is an ordinary buffer that is empty until the first step. Checkpoints contain it. Loading one restores its
    shape, dtype and values, so that a resumed run continues bit for bit. Heads always get their own gradients.

    Args:
        scale: See `GradientRule`.
    """

    memory: Tensor

    def __init__(self, *, scale: str = "sum"):
        super().__init__(scale=scale)

    def configure(self, tasks: int) -> None:
        """Creates the empty buffer."""
        super().configure(tasks)
        self.register_buffer("memory", torch.empty(0))

    def recall(self, like: Tensor, *shape: int) -> Tensor:
        """Returns the state, which the caller may change in place. It is all zeros in the first step.

        Args:
            like: Tensor that gives the dtype and device of the state.
            shape: Shape of the state, the same in every step.

        Raises:
            MethodError: If the stored state has another shape.
        """
        if self.memory.numel() == 0:
            self.memory = like.new_zeros(shape)
        if self.memory.shape != shape:
            raise MethodError(
                f"{type(self).__name__} works on the gradients of one network, so its state has one shape. Found "
                f"{shape} instead of {tuple(self.memory.shape)}. Make a new rule, or call configure()."
            )
        self.memory = self.memory.to(like)
        return self.memory

    def blend(self, weights: Tensor, active: Sequence[int]) -> Tensor:
        """Returns Σ w_i · row_i (P,) over the stored rows of the active tasks.

        Args:
            weights: (A,), on any device.
            active: Indices of the A active tasks.
        """
        # A product with all T rows avoids a copy of the active ones.
        every = self.memory.new_zeros(self.tasks)
        every[list(active)] = weights.to(every)
        return every @ self.memory

    @staticmethod
    def norm(row: Tensor) -> Tensor:
        """Returns the norm () of a row (P,) in float64, because the square of 1e20 overflows in float32."""
        return torch.linalg.vector_norm(row, dtype=torch.float64)

    def remembered_gramian(self) -> Tensor:
        """Returns the inner products (T, T) of the stored rows in float64, on their device."""
        found = (self.memory @ self.memory.T).double()
        if found.isfinite().all():
            return found
        # Squares overflowed in float32. Blocks of columns keep the copy in float64 small.
        parts = (part.double() for part in self.memory.split(BLOCK, dim=1))
        return torch.stack([part @ part.T for part in parts]).sum(0)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # PyTorch refuses to load a buffer of another shape, so the buffer first takes the shape that was saved.
        saved = state.get(prefix + "memory")
        if saved is not None:
            self.memory = torch.empty_like(saved, device=self.memory.device)
        super()._load_from_state_dict(state, prefix, *rest)
