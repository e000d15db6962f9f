"""Dropless dispatch: sorts tokens by expert, multiplies per expert, and gathers the results by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.experts import fused_mlp, segment_products
from mtlbench.networks.experts.fused_mlp import gather_sum

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class Dispatch:
    """The assignment of N tokens to k experts each, as N·k slots with one row per slot, sorted by expert.

    Attributes:
        chosen: (N, k) int64, the expert of each slot.
        order: (N·k,) int64, the slot of each row. Slot n·k + j is choice j of token n.
        inverse: (N·k,) int64, the row of each slot.
        sizes: (E,) int64, number of rows per expert.
    """

    chosen: Tensor
    order: Tensor
    inverse: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Dispatch:
        """Sorts the choices by expert.

        Args:
            chosen: (N, k) int64 in 0..E - 1, distinct experts of each token.
            experts: Number of experts E.
        """
        # A stable sort keeps the tokens of an expert in order, so that sums have a fixed order.
        by_expert, order = chosen.flatten().sort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        # `searchsorted`, because a compiler cannot infer the size of `bincount`'s output.
        ends = torch.searchsorted(by_expert, torch.arange(experts, device=order.device), right=True)
        return cls(chosen, order, inverse, ends.diff(prepend=ends.new_zeros(1)))

    @property
    def top_k(self) -> int:
        """Number of experts per token, k."""
        return self.chosen.shape[1]

    def spread(self, tokens: Tensor) -> Tensor:
        """Returns one row per slot, sorted by expert: (N·k, D).

        Args:
            tokens: (N, D), one row for all k slots of a token; or (N, k, D), one row per slot.
        """
        if tokens.ndim == 3:
            return _Permute.apply(tokens.flatten(0, 1), self.order, self.inverse)
        return _Spread.apply(tokens, self.order, self.inverse.view_as(self.chosen))

    def collect(self, rows: Tensor, gates: Tensor | None = None) -> Tensor:
        """Gathers rows by token, (N, k, D); with gates returns Σ_j gate_j · row_j, (N, D).

        Sums have a fixed order in the forward and backward pass.

        Args:
            rows: (N·k, D), sorted by expert.
            gates: (N, k), cast to the type of the rows.
        """
        if gates is None:
            return _Permute.apply(rows, self.inverse, self.order).view(*self.chosen.shape, rows.shape[1])
        return _Collect.apply(rows, gates.to(rows.dtype), self.order, self.inverse.view_as(self.chosen))

    def membership(self, dtype: torch.dtype) -> Tensor:
        """Returns (N·k, E) with 1 where the row belongs to the expert."""
        # Its product with E biases has a backward pass of fixed order, which indexing the biases would not have.
        by_expert = self.chosen.flatten().index_select(0, self.order)
        return F.one_hot(by_expert, self.sizes.shape[0]).to(dtype)


def segment_matmul(
    rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Returns every row times the matrix of its expert, plus the expert's bias: (N·k, M).

    Autocast casts the operands like those of a linear layer.

    Args:
        rows: (N·k, K), sorted by expert.
        weight: (E, K, M).
        dispatch: Dispatch of the same rows.
        bias: (E, M) or None.
        backend: A name in `BACKENDS`. ``"auto"`` uses ``padded`` in an export, ``grouped`` on CUDA if possible, and
            ``segment`` otherwise.

    Raises:
        MethodError: The backend is unknown or cannot multiply these operands.
    """
    product = _known(backend)
    rows, weight, *rest = _autocast(rows, weight, *(() if bias is None else (bias,)))
    return product(rows, weight, dispatch, rest[0] if rest else None)


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
    """Returns Σ_j gate_j · MLP_{expert j}(token): (N, D), with MLP(x) = gelu(x W1 + b1) W2 + b2.

    If W1 is twice as wide as W2 is high, the MLP is gated: (gelu(a) · b) W2 + b2 with (a, b) = x W1 + b1.

    ``segment`` is a single operator that can be differentiated once. The other backends, and gated MLPs, combine
    `Dispatch` and `segment_matmul`.

    Args:
        tokens: (N, D).
        gates: (N, k), cast to the type of the product.
        dispatch: Dispatch of the same tokens.
        weight1: (E, D, h), or (E, D, 2h).
        bias1: (E, h), or (E, 2h).
        weight2: (E, h, D).
        bias2: (E, D).
        backend: As in `segment_matmul`.

    Raises:
        MethodError: As in `segment_matmul`.
    """
    tokens, weight1, bias1, weight2, bias2 = _autocast(tokens, weight1, bias1, weight2, bias2)
    gates = gates.to(tokens.dtype)
    product = _known(backend)
    if product is _auto:
        product = _choice(tokens, weight1, weight2)
    gated = weight1.shape[2] > weight2.shape[1]
    if product is _segment and not gated:
        index = (dispatch.order, dispatch.inverse, dispatch.sizes)
        sums, _ = fused_mlp.forward(tokens, gates, weight1, bias1, weight2, *index)
    else:
        first = product(dispatch.spread(tokens), weight1, dispatch, bias1)
        hidden = _glu(first) if gated else F.gelu(first)
        sums = dispatch.collect(product(hidden, weight2, dispatch, None), gates)
    # Σ_j gate_j · b2 of expert j is a small dense product, cheaper than adding a bias to all N·k rows.
    mixture = gates.new_zeros(gates.shape[0], bias2.shape[0]).scatter(1, dispatch.chosen, gates)  # (N, E)
    return torch.addmm(sums, mixture, bias2)


def flop_mapping() -> dict[Any, Callable[..., int]]:
    """Returns the FLOP formula of grouped products for `FlopCounterMode(custom_mapping=...)`.

    The operators of this package register their own formulas.
    """
    grouped = getattr(torch.ops.aten, "_grouped_mm", None)
    return {} if grouped is None else {grouped: _grouped_flops}


def _grouped_flops(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Counts (R, K) by (E, K, M) or, for the gradient of the weights, (K, R) by (R, M)."""
    return 2 * left[0] * left[1] * right[-1]


def _auto(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    return _choice(rows, weight)(rows, weight, dispatch, bias)


def _naive(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    """Computes one product after the other, as a reference."""
    parts = rows.split(dispatch.sizes.tolist())
    products = [part @ matrix for part, matrix in zip(parts, weight.unbind(), strict=True)]
    if bias is not None:
        products = [product + vector for product, vector in zip(products, bias.unbind(), strict=True)]
    return torch.cat(products)


def _glu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return F.gelu(a) * b


def _segment(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    return segment_products.matmul(rows, weight, bias, dispatch.sizes)


def _grouped(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    """Uses `torch.nn.functional.grouped_mm`, which leaves the sizes on the device."""
    if fault := _ungroupable(rows, weight):
        raise MethodError(f"backend 'grouped' {fault}. Use 'auto' or 'segment'.")
    ends = dispatch.sizes.cumsum(0).to(torch.int32)
    product = _DenseGradient.apply(F.grouped_mm(rows, weight, offs=ends))
    return product if bias is None else product + dispatch.membership(bias.dtype) @ bias


def _padded(rows: Tensor, weight: Tensor, dispatch: Dispatch, bias: Tensor | None) -> Tensor:
    """Computes one batched product with equally many rows per expert: N, the maximum, in a graph."""
    static = torch.compiler.is_compiling()
    space = dispatch.chosen.shape[0] if static else max(dispatch.sizes.tolist(), default=0)
    by_expert = dispatch.chosen.flatten().index_select(0, dispatch.order)
    starts = dispatch.sizes.cumsum(0) - dispatch.sizes
    # Row r of an expert goes to position r of that expert's block; the rest of each block stays zero.
    place = by_expert * space + torch.arange(rows.shape[0], device=rows.device) - starts.index_select(0, by_expert)
    experts, width, out = weight.shape
    buffer = rows.new_zeros(experts * space, width).index_copy(0, place, rows).view(experts, space, width)
    product = (buffer @ weight).view(experts * space, out).index_select(0, place)
    return product if bias is None else product + dispatch.membership(bias.dtype) @ bias


Product = Callable[[Tensor, Tensor, Dispatch, "Tensor | None"], Tensor]
_PRODUCTS: dict[str, Product] = {
    "auto": _auto,
    "naive": _naive,
    "segment": _segment,
    "grouped": _grouped,
    "padded": _padded,
}
BACKENDS = tuple(_PRODUCTS)
"""Names of the backends that multiply rows by the matrices of their experts; see `segment_matmul`."""


def _known(backend: str) -> Product:
    if backend not in BACKENDS:
        raise MethodError(unknown_name("backend", backend, BACKENDS))
    return _PRODUCTS[backend]


def _choice(rows: Tensor, *weights: Tensor) -> Product:
    """Chooses the product that the backend ``auto`` uses for these operands.

    On a CPU ``grouped`` loops over the same products, and ``segment`` is never slower. On CUDA ``segment`` would wait
    for the sizes. An export may contain only PyTorch's own operators, which costs E / k times the work.
    """
    if getattr(torch.compiler, "is_exporting", bool)():
        return _padded
    if rows.is_cuda and not any(_ungroupable(rows, weight) for weight in weights):
        return _grouped
    return _segment


def _ungroupable(rows: Tensor, weight: Tensor) -> str:
    """Returns the reason why `grouped_mm` cannot multiply or differentiate these operands, or an empty string."""
    if not hasattr(F, "grouped_mm") or (not rows.is_cuda and _VERSION < (2, 11)):
        return f"needs a newer PyTorch; found {torch.__version__}"
    if rows.dtype not in (torch.bfloat16, torch.float16, torch.float32) or weight.dtype != rows.dtype:
        return f"needs operands of one type with 16 or 32 bits; found {rows.dtype} and {weight.dtype}"
    if any(size * rows.element_size() % 16 for size in weight.shape[1:]):
        return f"needs widths that are multiples of 16 bytes; found {tuple(weight.shape[1:])} in {rows.dtype}"
    if torch.compiler.is_compiling() and rows.dtype == torch.float32:
        return "cannot be compiled in float32"
    return ""


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts tensors as autocast does if it is enabled. Like autocast, it leaves float64 unchanged."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


class _DenseGradient(torch.autograd.Function):
    """Identity with a contiguous gradient, because `grouped_mm` rejects gradients of stride 0, like those of a sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.contiguous()


class _Permute(torch.autograd.Function):
    """Reorders rows. Its backward pass reads by the inverse order, where that of plain indexing would add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        order, inverse = ctx.saved_tensors
        return _Permute.apply(gradient, inverse, order), None, None


class _Spread(torch.autograd.Function):
    """Maps tokens (N, D), order (N·k,) and inverse (N, k) to rows (N·k, D)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(0, order // inverse.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        return gather_sum(gradient.contiguous(), inverse), None, None


class _Collect(torch.autograd.Function):
    """Returns Σ_j gates[n, j] · rows[inverse[n, j]] (N, D) from rows (N·k, D), gates (N, k) and order (N·k,)."""

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
