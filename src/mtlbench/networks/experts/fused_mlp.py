"""The MLP of the chosen experts as one custom operator: gathers rows, multiplies twice with GELU, sums per token.

The single operator keeps one array of N·k rows for the backward pass, the hidden values before GELU. Five separate
operators would keep four. Experts are processed in groups, so that element-wise work needs few calls and stays in
cache. The caller adds the second bias, because Σ_j gate_j · b2 of expert j depends only on gates and biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from mtlbench.networks.experts.segment_products import Layout, most_rows

GROUP = 4096
"""Number of rows at which a group of experts is complete."""


def gather_sum(rows: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns Σ_j weights[n, j] · rows[index[n, j]] (N, D), in a fixed order, without materialising (N, k, D).

    Args:
        rows: (R, D).
        index: (N, k) int64.
        weights: (N, k) in the type of the rows; ones if None.
    """
    # `embedding_bag` adds in the order of the index and needs no intermediate array.
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


@torch.library.custom_op("mtlbench::expert_mlp", mutates_args=())
def forward(
    tokens: Tensor,
    gates: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    order: Tensor,
    inverse: Tensor,
    sizes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns Σ_j gate_j · gelu(x W1 + b1) W2 (N, D), and the hidden values before GELU for the backward pass.

    Args:
        tokens: (N, D).
        gates: (N, k), in the type of the tokens like all weights below.
        weight1: (E, D, h).
        bias1: (E, h).
        weight2: (E, h, D).
        order: (N·k,); this and the next two are attributes of a `Dispatch`.
        inverse: (N·k,).
        sizes: (E,).
    """
    layout, token, where, _ = _rows(tokens, gates, order, inverse, sizes)
    # The upper bound on the rows gives `hidden` a shape that a compiler can know without the sizes.
    hidden = tokens.new_empty(most_rows(len(order), len(sizes), tokens), weight1.shape[2])
    results = tokens.new_empty(len(token), tokens.shape[1])
    first, biases, second = weight1.unbind(), bias1.unbind(), weight2.unbind()
    for group, members in _groups(layout.parts):
        # Tokens are gathered one group at a time, so that no array of N·k rows is made for them.
        x, h, y = tokens.index_select(0, token[group]), hidden[group], results[group]
        for e, part in members:
            torch.addmm(biases[e], x[part], first[e], out=h[part])
        a = F.gelu(h)
        for e, part in members:
            torch.mm(a[part], second[e], out=y[part])
    return gather_sum(results, where, gates), hidden


@torch.library.custom_op("mtlbench::expert_mlp_backward", mutates_args=())
def backward(
    gradient: Tensor,
    hidden: Tensor,
    tokens: Tensor,
    gates: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    order: Tensor,
    inverse: Tensor,
    sizes: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of tokens, gates, W1, b1 and W2 from that of the output (N, D)."""
    layout, token, where, slot = _rows(tokens, gates, order, inverse, sizes)
    gate = layout.take(gates.reshape(-1, 1), slot)  # Zero in spare rows, which therefore add nothing to any sum.
    to_rows, to_gate = tokens.new_empty(len(token), tokens.shape[1]), gates.new_empty(len(token))
    to_weight1, to_bias1, to_weight2 = (torch.empty_like(p) for p in (weight1, bias1, weight2))
    first, second = weight1.mT.unbind(), weight2.mT.unbind()
    for group, members in _groups(layout.parts):
        y, h, g = gradient.index_select(0, token[group]), hidden[group], gate[group]
        a = F.gelu(h)
        # `to_a` is computed without the gate first, because the gradient of the gate is the inner product a · to_a.
        to_a = torch.empty_like(a)
        for e, part in members:
            torch.mm(y[part], second[e], out=to_a[part])
        torch.sum(a * to_a, 1, out=to_gate[group])
        a *= g
        to_a *= g
        for e, part in members:
            torch.mm(a[part].t(), y[part], out=to_weight2[e])
        to_h = torch.ops.aten.gelu_backward(to_a, h)
        x, to_x = tokens.index_select(0, token[group]), to_rows[group]
        for e, part in members:
            torch.mm(x[part].t(), to_h[part], out=to_weight1[e])
            torch.sum(to_h[part], 0, out=to_bias1[e])
            torch.mm(to_h[part], first[e], out=to_x[part])
    to_gates = to_gate.index_select(0, where.flatten()).view_as(gates)
    return gather_sum(to_rows, where), to_gates, to_weight1, to_bias1, to_weight2


def _rows(
    tokens: Tensor, gates: Tensor, order: Tensor, inverse: Tensor, sizes: Tensor
) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """Returns the layout, the token (P,) of every row, the row (N, k) of every slot, and the slot (P,) of every row."""
    layout = Layout.of(sizes, tokens)
    slot = order.index_select(0, layout.source)
    where = layout.place.index_select(0, inverse).view_as(gates)
    return layout, slot // gates.shape[1], where, slot


def _groups(parts: list[slice]) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """Yields groups of consecutive experts as the rows of the group and each expert's part of them."""
    start, members = 0, []
    for e, part in enumerate(parts):
        members.append((e, slice(part.start - start, part.stop - start)))
        if part.stop - start >= GROUP or e + 1 == len(parts):
            yield slice(start, part.stop), members
            start, members = part.stop, []


@forward.register_fake
def _(tokens: Tensor, gates: Tensor, weight1: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = most_rows(gates.shape[0] * gates.shape[1], weight1.shape[0], tokens)
    return tokens.new_empty(tokens.shape), tokens.new_empty(rows, weight1.shape[2])


@backward.register_fake
def _(gradient: Tensor, hidden: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(p.new_empty(p.shape) for p in inputs[:5])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # Allocates no zeros for the hidden values, which have no gradient.
    ctx.save_for_backward(output[1], *inputs)


def _backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    return *backward(gradient.contiguous(), *ctx.saved_tensors), None, None, None


forward.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.mtlbench.expert_mlp)
def _forward_flops(tokens: Any, gates: Any, weight1: Any, *_: Any, **__: Any) -> int:
    return 2 * 2 * gates[0] * gates[1] * weight1[1] * weight1[2]


@register_flop_formula(torch.ops.mtlbench.expert_mlp_backward)
def _backward_flops(gradient: Any, hidden: Any, tokens: Any, gates: Any, weight1: Any, *_: Any, **__: Any) -> int:
    return 2 * _forward_flops(tokens, gates, weight1)
