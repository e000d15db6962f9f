"""Products of sorted rows with one matrix per expert, as custom operators of PyTorch.

The rows of one expert are contiguous, so its product is a single matrix product that reads and writes slices. The
operators accept any floating type and width and concatenate nothing. The number of rows per expert is read on the host,
which costs nothing on a CPU but makes a GPU wait.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_STEP = 16
"""Smallest step, in rows, to which counts are rounded up."""


@dataclass(frozen=True)
class Layout:
    """The position of every expert's rows in a buffer, followed by spare rows if these save time.

    On a CPU, oneDNN multiplies 16-bit numbers and compiles a kernel for each new shape, which takes about half a
    millisecond. Routing produces new shapes in every step. Counts are therefore rounded up to a few values, by at most
    16 rows + 1/32.

    Attributes:
        parts: The rows of every expert in the buffer, including spare ones.
        gaps: The spare rows.
        source: (P,) int64, the original row that each of the P buffer rows holds; arbitrary for a spare row.
        place: (R,) int64, the buffer row of each of the R original rows.
    """

    parts: list[slice]
    gaps: list[slice]
    source: Tensor
    place: Tensor

    @classmethod
    def of(cls, sizes: Tensor, like: Tensor) -> Layout:
        """Computes the layout for these sizes.

        Args:
            sizes: (E,) int64, rows per expert.
            like: A tensor with the type and device of the rows.
        """
        used = sizes.tolist()
        taken = [_rounded(size) for size in used] if _compiles_per_shape(like) else used
        starts, ends = [0, *itertools.accumulate(used)], [0, *itertools.accumulate(taken)]
        parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        gaps = [slice(p.start + n, p.stop) for p, n in zip(parts, used, strict=True) if p.start + n < p.stop]
        place = source = torch.arange(starts[-1], device=sizes.device)
        if gaps:
            # All rows of an expert move by the number of spare rows before it.
            shift = torch.tensor([end - start for start, end in zip(starts, ends, strict=True)][:-1])
            place = source + shift.to(sizes.device).repeat_interleave(sizes, output_size=starts[-1])
            source = source.new_zeros(ends[-1]).scatter_(0, place, source)
        return cls(parts, gaps, source, place)

    def take(self, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Returns the buffer of ``values`` (R, ...), or of the rows ``index`` (P,) of it, with zeros in spare rows."""
        if index is None and not self.gaps:
            return values
        buffer = values.index_select(0, self.source if index is None else index)
        for gap in self.gaps:
            buffer[gap] = 0
        return buffer

    def give(self, buffer: Tensor) -> Tensor:
        """Returns the rows of a buffer without the spare ones, (R, ...)."""
        return buffer.index_select(0, self.place) if self.gaps else buffer


def most_rows(rows: Any, experts: Any, like: Tensor) -> Any:
    """Returns an upper bound on the rows of a buffer, which does not depend on the sizes."""
    return rows + rows // 32 + _STEP * experts if _compiles_per_shape(like) else rows


def _compiles_per_shape(like: Tensor) -> bool:
    return like.dtype.itemsize < 4 and like.device.type == "cpu"


def _rounded(size: int) -> int:
    # A step of 2^(bits - 6) is at most 1/32 of the size, so that there are at most 32 values per power of two.
    step = max(_STEP, 2 ** max(0, size.bit_length() - 6))
    return -(-size // step) * step


@torch.library.custom_op("mtlbench::segment_matmul", mutates_args=())
def matmul(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor) -> Tensor:
    """Returns every row times the matrix of its expert, plus the expert's bias: (R, N).

    Args:
        rows: (R, K), sorted by expert.
        weight: (E, K, N).
        bias: (E, N) or None.
        sizes: (E,) int64, rows per expert, which sum to R.
    """
    layout = Layout.of(sizes, rows)
    buffer = layout.take(rows)
    result = buffer.new_empty(len(buffer), weight.shape[2])
    for e, part in enumerate(layout.parts):
        if bias is None:
            torch.mm(buffer[part], weight[e], out=result[part])
        else:
            torch.addmm(bias[e], buffer[part], weight[e], out=result[part])
    return layout.give(result)


@torch.library.custom_op("mtlbench::segment_outer", mutates_args=())
def outer(left: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
    """Returns leftᵀ right over the rows of every expert, (E, K, N); zero for an expert without rows.

    Args:
        left: (R, K), sorted by expert.
        right: (R, N).
        sizes: (E,) int64.
    """
    layout = Layout.of(sizes, left)
    left, right = layout.take(left), layout.take(right)
    result = left.new_empty(len(sizes), left.shape[1], right.shape[1])
    for e, part in enumerate(layout.parts):
        torch.mm(left[part].t(), right[part], out=result[e])
    return result


@matmul.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[2])


@outer.register_fake
def _(left: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
    return left.new_empty(sizes.shape[0], left.shape[1], right.shape[1])


def _keep_matmul(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, weight, bias, sizes = inputs
    ctx.save_for_backward(rows, weight, sizes)
    ctx.has_bias = bias is not None


def _matmul_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, sizes = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gradient = gradient.contiguous()
    to_rows = matmul(gradient, weight.transpose(1, 2), None, sizes) if needs[0] else None
    to_weight = outer(rows, gradient, sizes) if needs[1] else None
    to_bias = None
    if ctx.has_bias and needs[2]:
        # The sum of the rows of an expert is an outer product with ones, which has the fixed order of a product.
        to_bias = outer(gradient.new_ones(gradient.shape[0], 1), gradient, sizes).squeeze(1)
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
def _matmul_flops(rows: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * rows[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.mtlbench.segment_outer)
def _outer_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]
