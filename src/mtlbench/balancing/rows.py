"""Rows of a Jacobian as lists of tensors, one per parameter: what autograd returns, without a copy of it.

A row is the gradient of one task; its tensors have the shapes of the parameters. Work goes block by block, so that
what lies between stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Row = list[Tensor]

BLOCK = {"cpu": 1 << 18}
"""Numbers in a block of all rows, by kind of device: what stays in a core's cache."""

BLOCK_ELSEWHERE = 1 << 25
"""The same on accelerators: large, to keep kernel launches few."""


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor], given: Tensor | None = None) -> Row:
    """Returns a row that may be changed in place: zeros for None, contiguous, no two tensors in the same memory.

    In float32 at least: low precision would lose what rules compare. Autograd hands one tensor to two parameters
    whose sum is taken, and may hand back what it was ``given``.
    """
    seen = set() if given is None else {given.data_ptr()}
    row = []
    for found, parameter in zip(gradients, like, strict=True):
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        tensor = torch.zeros_like(parameter, dtype=dtype) if found is None else found.to(dtype).contiguous()
        row.append(tensor.clone() if tensor.data_ptr() in seen else tensor)
        seen.add(tensor.data_ptr())
    return row


def blocks(rows: Sequence[Row]) -> Iterator[list[Tensor]]:
    """Yields the rows block by block, in order: views (n,), one per row."""
    if not rows or not rows[0]:
        return
    size = max(1024, BLOCK.get(rows[0][0].device.type, BLOCK_ELSEWHERE) // len(rows))
    for tensors in zip(*rows, strict=True):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)


def gramian(one: Sequence[Row], other: Sequence[Row] | None = None) -> Tensor:
    """Returns the inner products (A, A) of the rows with each other, or with other rows; float64, on the device."""
    products = []
    if other is None:
        for block in blocks(one):
            stacked = torch.stack(block)
            products.append(stacked @ stacked.T)
    else:
        for block in blocks([*one, *other]):
            stacked = torch.stack(block)
            products.append(stacked[: len(one)] @ stacked[len(one) :].T)
    if not products:
        return torch.zeros(len(one), len(one if other is None else other), dtype=torch.float64)
    return torch.stack(products).double().sum(0)


def combine(rows: Sequence[Row], weights: Sequence[float]) -> Row:
    """Returns Σ w_i · row_i in the memory of the first row."""
    for first, *rest in blocks(rows):
        first.mul_(weights[0])
        for row, weight in zip(rest, weights[1:], strict=True):
            first.add_(row, alpha=weight)
    return rows[0]


def combine_by(rule: Callable[[Tensor], Tensor], rows: Sequence[Row]) -> Row:
    """Returns what a rule on single columns, (A, n) → (n,), makes of the rows, in the memory of the first row."""
    for block in blocks(rows):
        block[0].copy_(rule(torch.stack(block)))
    return rows[0]
