"""Products of sorted rows with one matrix per expert, as custom operators of PyTorch.

Rows of expert e lie side by side, so every expert's product is one matrix product that reads and writes a slice: no
copy, no padding, any floating type, any size. The number of rows per expert is read on the host, which is free on a
CPU; on a GPU it waits for the device.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


def segments(sizes: Tensor) -> list[slice]:
    """Returns the rows of every expert; reads ``sizes`` (E,) on the host."""
    ends = [0, *itertools.accumulate(sizes.tolist())]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


@torch.library.custom_op("mtlbench::segment_matmul", mutates_args=())
def matmul(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor) -> Tensor:
    """Returns (R, N): row r times the matrix of its expert, plus the expert's bias.

    Args:
        rows: (R, K), sorted by expert.
        weight: (E, K, N).
        bias: (E, N) or None.
        sizes: (E,) int64, rows per expert; they sum to R.
    """
    result = rows.new_empty(len(rows), weight.shape[2])
    for e, part in enumerate(segments(sizes)):
        if bias is None:
            torch.mm(rows[part], weight[e], out=result[part])
        else:
            torch.addmm(bias[e], rows[part], weight[e], out=result[part])
    return result


@matmul.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[2])


@torch.library.custom_op("mtlbench::segment_outer", mutates_args=())
def outer(left: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
    """Returns (E, K, N): leftᵀ right over the rows of every expert, zero for one without rows.

    Args:
        left: (R, K), sorted by expert.
        right: (R, N).
        sizes: (E,) int64.
    """
    result = left.new_empty(len(sizes), left.shape[1], right.shape[1])
    for e, part in enumerate(segments(sizes)):
        torch.mm(left[part].t(), right[part], out=result[e])
    return result


@outer.register_fake
def _(left: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
    return left.new_empty(len(sizes), left.shape[1], right.shape[1])


def _keep_matmul(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, bias, sizes = inputs
    ctx.save_for_backward(rows, weight, sizes)
    ctx.has_bias = bias is not None


def _matmul_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, sizes = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_rows = matmul(gradient, weight.transpose(1, 2), None, sizes) if needs[0] else None
    to_weight = outer(rows, gradient, sizes) if needs[1] else None
    to_bias = None
    if ctx.has_bias and needs[2]:
        to_bias = outer(gradient.new_ones(len(gradient), 1), gradient, sizes).squeeze(1)
    return to_rows, to_weight, to_bias, None


def _keep_outer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _outer_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    left, right, sizes = ctx.saved_tensors
    to_left = matmul(right, gradient.transpose(1, 2), None, sizes) if ctx.needs_input_grad[0] else None
    to_right = matmul(left, gradient, None, sizes) if ctx.needs_input_grad[1] else None
    return to_left, to_right, None


matmul.register_autograd(_matmul_backward, setup_context=_keep_matmul)
outer.register_autograd(_outer_backward, setup_context=_keep_outer)


@register_flop_formula(torch.ops.mtlbench.segment_matmul)
def _matmul_flops(rows: Any, weight: Any, bias: Any, sizes: Any, *_: Any, **__: Any) -> int:
    return 2 * rows[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.mtlbench.segment_outer)
def _outer_flops(left: Any, right: Any, sizes: Any, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


assert F
