"""Rows of a Jacobian as lists of tensors, one per parameter: what autograd returns, without a copy of it.

A row is the gradient of one task; its tensors have the shapes of the parameters. Work goes block by block, so that
what lies between stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Row = list[Tensor]

SHORT = 256
"""Columns whose products are added in the rows' own precision."""

BLOCK = {"cpu": 1 << 18}
"""Numbers in a block of all rows, by kind of device: what stays in a core's cache."""

BLOCK_ELSEWHERE = 1 << 25
"""The same on accelerators: large, to keep kernel launches few."""


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor], given: Tensor | None = None) -> Row:
    """Returns a row that may be changed in place: zeros for None, contiguous, no two tensors in the same memory.

    In float32 at least: low precision would lose what rules compare. Autograd hands one tensor to two parameters
    whose sum is taken, or parts of one to parts of a sum, and may hand back what it was ``given``.
    """
    seen = set() if given is None else {given.untyped_storage().data_ptr()}
    row = []
    for found, parameter in zip(gradients, like, strict=True):
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if found is None:
            tensor = torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
        else:
            tensor = found.to(dtype).contiguous()
        place = tensor.untyped_storage().data_ptr()
        row.append(tensor.clone() if place in seen else tensor)
        seen.add(place)
    return row


def blocks(rows: Sequence[Row]) -> Iterator[list[Tensor]]:
    """Yields the rows block by block, in order: views (n,), one per row."""
    if not rows or not rows[0]:
        return
    size = max(1024, BLOCK.get(rows[0][0].device.type, BLOCK_ELSEWHERE) // len(rows))
    for tensors in zip(*rows, strict=True):
        yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)


def gramian(one: Sequence[Row], other: Sequence[Row] | None = None) -> Tensor:
    """Returns the inner products (A, A) of the rows with each other, or with other rows; float64, on the device.

    Products of `SHORT` columns are added in float64: in float32 throughout, dependent rows would seem independent
    (relative error 4e-7 on 11 million columns, so 5e-10, for a quarter of the time more; float64 costs twice the time).
    """
    every, count = [*one, *(other or ())], len(one)
    products = []
    for block in blocks(every):
        stacked = torch.stack(block)
        whole = stacked.shape[1] // SHORT * SHORT
        for part in (stacked[:, :whole].unflatten(1, (-1, SHORT)), stacked[:, whole:, None].transpose(1, 2)):
            part = part.transpose(0, 1)  # (parts, A, columns)
            left, right = (part, part) if other is None else (part[:, :count], part[:, count:])
            products.append(torch.bmm(left, right.transpose(1, 2)).sum(0, dtype=torch.float64))
    if not products:
        return torch.zeros(count, count if other is None else len(other), dtype=torch.float64)
    return torch.stack(products).sum(0)


def combine(rows: Sequence[Row], weights: Sequence[float]) -> Row:
    """Returns Σ w_i · row_i in the memory of the first row."""
    for first, *rest in blocks(rows):
        first.mul_(weights[0])
        for row, weight in zip(rest, weights[1:], strict=True):
            first.add_(row, alpha=weight)
    return rows[0]


def combine_by(rule: Callable[[Tensor], Tensor], rows: Sequence[Row]) -> Row:
    """Applies a rule on single columns, (A, n) → (n,), to the rows; the result takes the memory of the first row."""
    for block in blocks(rows):
        block[0].copy_(rule(torch.stack(block)))
    return rows[0]
