"""Dropless dispatch: tokens sorted by expert, products per expert, results put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks import segment_op

BACKENDS = ("auto", "naive", "segment", "grouped", "padded")
"""Ways to multiply rows by the matrices of their experts; see `segment_matmul`."""


@dataclass(frozen=True)
class Dispatch:
    """Where N tokens go that choose k experts each: N·k slots, sorted by expert. Every slot is one row.

    Attributes:
        order: (N·k,) int64, the slot that each row comes from; slot n·k + j is choice j of token n.
        inverse: (N·k,) int64, the row of each slot.
        sizes: (E,) int64, rows per expert.
        top_k: k.
    """

    order: Tensor
    inverse: Tensor
    sizes: Tensor
    top_k: int

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Dispatch:
        """Sorts the choices.

        Args:
            chosen: (N, k) int64 in 0..E - 1, distinct experts of each token.
            experts: E.
        """
        by_expert, order = chosen.flatten().sort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        # Ends by search: the output of `bincount` has no size that a compiler could know.
        ends = torch.searchsorted(by_expert, torch.arange(experts, device=order.device), right=True)
        return cls(order, inverse, ends.diff(prepend=ends.new_zeros(1)), chosen.shape[1])

    def spread(self, tokens: Tensor) -> Tensor:
        """Returns one row per slot, sorted by expert: (N·k, D).

        Args:
            tokens: (N, D), every token for its k slots; or (N, k, D), one per slot.
        """
        if tokens.ndim == 3:
            return _Permute.apply(tokens.flatten(0, 1), self.order, self.inverse)
        return _Spread.apply(tokens, self.order, self.inverse.view(-1, self.top_k))

    def collect(self, rows: Tensor, gates: Tensor | None = None) -> Tensor:
        """Returns rows to their tokens: (N, k, D), or with gates Σ_j gate_j · row_j: (N, D).

        Every sum has a fixed order, forward and backward.

        Args:
            rows: (N·k, D), sorted by expert.
            gates: (N, k), taken in the type of the rows.
        """
        if gates is None:
            return _Permute.apply(rows, self.inverse, self.order).unflatten(0, (-1, self.top_k))
        return _Collect.apply(rows, gates.to(rows.dtype), self.order, self.inverse.view(-1, self.top_k))


class _Permute(torch.autograd.Function):
    """Rows in another order. The backward of plain indexing adds; this one reads by the inverse order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        order, inverse = ctx.saved_tensors
        return _Permute.apply(gradient, inverse, order), None, None


class _Spread(torch.autograd.Function):
    """tokens (N, D), order (N·k,), inverse (N, k) → rows (N·k, D)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(0, order // inverse.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        return gather_sum(gradient, inverse), None, None


class _Collect(torch.autograd.Function):
    """rows (N·k, D), gates (N, k), order (N·k,), inverse (N, k) → Σ_j gates[n, j] · rows[inverse[n, j]] (N, D)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gates, order, inverse)
        return gather_sum(rows, inverse, gates)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, gates, order, inverse = ctx.saved_tensors
        spread = gradient.index_select(0, order // gates.shape[1])
        to_gates = (rows * spread).sum(1).index_select(0, inverse.flatten()).view_as(gates)
        to_rows = spread * gates.flatten().index_select(0, order).unsqueeze(1)
        return to_rows, to_gates, None, None


def gather_sum(rows: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns Σ_j weights[n, j] · rows[index[n, j]]: (N, D), without the (N, k, D) between."""
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


def segment_matmul(
    rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Returns (R, N): every row times the matrix of its expert, plus the expert's bias.

    Args:
        rows: (R, K), sorted by expert.
        weight: (E, K, N).
        dispatch: Of the same rows.
        bias: (E, N) or None.
        backend: One of `BACKENDS`.

    Raises:
        MethodError: ``backend`` is unknown.
    """
    if backend not in BACKENDS:
        raise MethodError(unknown_name("backend", backend, BACKENDS))
    if backend == "naive":
        return _naive(rows, weight, dispatch, bias)
    return segment_op.matmul(rows, weight, bias, dispatch.sizes)


def expert_mlp(
    tokens: Tensor,
    gates: Tensor,
    dispatch: Dispatch,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Returns Σ_j gate_j · MLP_{expert j}(token): (N, D), MLP(x) = gelu(x W1 + b1) W2 + b2.

    Args:
        tokens: (N, D).
        gates: (N, k).
        dispatch: Of the same tokens.
        weight1: (E, D, h).
        bias1: (E, h).
        weight2: (E, h, D).
        bias2: (E, D).
        backend: One of `BACKENDS`.
    """
    hidden = F.gelu(segment_matmul(dispatch.spread(tokens), weight1, dispatch, bias1, backend=backend))
    return dispatch.collect(segment_matmul(hidden, weight2, dispatch, bias2, backend=backend), gates)


def _naive(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    parts = zip(rows.split(dispatch.sizes.tolist()), weight.unbind(), strict=True)
    products = torch.cat([part @ matrix for part, matrix in parts])
    return products if bias is None else products + bias.repeat_interleave(dispatch.sizes, 0)
