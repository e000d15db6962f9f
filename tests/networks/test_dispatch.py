"""Dispatch: sorting is a permutation, and every backend computes the dense mixture and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.errors import MethodError
from mtlbench.networks.experts import fused_mlp, segment_products
from mtlbench.networks.experts.dispatch import BACKENDS, Dispatch, expert_mlp, flop_mapping, segment_matmul

WIDTH, HIDDEN = 24, 16  # of whole 16 bytes in every type, as `grouped` asks
ROUTES: dict[str, tuple[int, int, int]] = {  # tokens, k, experts
    "random": (37, 3, 8),
    "all_to_one": (37, 1, 5),
    "empty_experts": (37, 2, 9),
    "no_tokens": (0, 2, 4),
    "all_experts": (11, 5, 5),
    "one_expert": (11, 1, 1),
    "one_token": (1, 2, 4),
    "large": (700, 2, 4),
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}
WAYS = [(b, d) for b in BACKENDS for d in TOLERANCE if (b, d) != ("grouped", torch.float64)]
Case = tuple[Tensor, list[Tensor]]  # chosen; tokens, gates, W1, b1, W2, b2


def route(name: str) -> Tensor:
    """Returns the chosen experts: (N, k)."""
    count, top_k, experts = ROUTES[name]
    scores = torch.rand(count, experts, generator=torch.Generator().manual_seed(3))
    if name == "all_to_one":
        scores[:, 3] = 2
    if name == "empty_experts":
        scores[:, [0, 4, 8]] = -1
    return scores.topk(top_k, 1)[1]


def case(name: str, dtype: torch.dtype = torch.float64, width: int = WIDTH, hidden: int = HIDDEN) -> Case:
    count, top_k, experts = ROUTES[name]
    generator = torch.Generator().manual_seed(5)
    shapes = [
        (count, width),
        (count, top_k),
        (experts, width, hidden),
        (experts, hidden),
        (experts, hidden, width),
        (experts, width),
    ]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return route(name), [value.requires_grad_() for value in values]


def mlp(chosen: Tensor, values: list[Tensor], backend: str) -> Tensor:
    tokens, gates, *weights = values
    return expert_mlp(tokens, gates, Dispatch.of(chosen, len(weights[0])), *weights, backend=backend)


def dense_mixture(chosen: Tensor, values: list[Tensor]) -> Tensor:
    """Every expert on every token, gates zero where it was not chosen: no dispatch at all."""
    tokens, gates, w1, b1, w2, b2 = values
    hidden = F.gelu(torch.einsum("nd,edh->neh", tokens, w1) + b1)
    mixture = torch.zeros(len(tokens), len(w1), dtype=gates.dtype).scatter(1, chosen, gates)
    return torch.einsum("ne,ned->nd", mixture, torch.einsum("neh,ehd->ned", hidden, w2) + b2)


def with_gradients(function: Callable[[], Tensor], values: list[Tensor]) -> list[Tensor]:
    """Returns the result, and the gradients of its product with fixed numbers."""
    result = function()
    upstream = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape).to(result)
    return [result, *torch.autograd.grad(result, values, upstream)]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Checks every pair, relative to the largest number of the wanted one."""
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        assert f.shape == w.shape
        if w.numel():
            assert (f.double() - w).abs().max() <= tolerance * max(1e-30, w.abs().max())


@pytest.mark.parametrize("name", ROUTES)
def test_dispatch_is_a_permutation(name: str) -> None:
    chosen = route(name)
    _, top_k, experts = ROUTES[name]
    dispatch = Dispatch.of(chosen, experts)
    assert torch.equal(dispatch.sizes, torch.bincount(chosen.flatten(), minlength=experts))
    assert int(dispatch.sizes.sum()) == chosen.numel()
    assert torch.equal(dispatch.order[dispatch.inverse], torch.arange(chosen.numel()))
    by_expert = chosen.flatten()[dispatch.order]
    assert torch.equal(by_expert, by_expert.sort()[0])
    # Tokens of one expert stay in order, and none of them is there twice.
    for e in range(experts):
        tokens = dispatch.order[by_expert == e] // top_k
        assert torch.equal(tokens, tokens.unique())
    slots = torch.randn(*chosen.shape, 3)
    assert torch.equal(dispatch.collect(dispatch.spread(slots)), slots)
    tokens = torch.randn(len(chosen), 3)
    assert torch.equal(dispatch.collect(dispatch.spread(tokens)), tokens.unsqueeze(1).expand(-1, top_k, -1))


def test_sums_follow_the_gates() -> None:
    """Rows by hand: token 0 goes to experts 1 and 0, token 1 to 2 and 1."""
    dispatch = Dispatch.of(torch.tensor([[1, 0], [2, 1]]), 3)
    rows = dispatch.spread(torch.tensor([[1.0], [10.0]]))
    assert rows.flatten().tolist() == [1, 1, 10, 10]  # experts 0, 1, 1, 2
    found = dispatch.collect(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[0.5, 0.25], [2.0, 1.0]]))
    assert found.flatten().tolist() == [0.5 * 2 + 0.25 * 1, 2 * 4 + 1 * 3]


@pytest.mark.parametrize("name", ["random", "empty_experts", "no_tokens"])
def test_dispatch_has_exact_derivatives(name: str) -> None:
    chosen = route(name)
    dispatch = Dispatch.of(chosen, ROUTES[name][2])
    tokens = torch.randn(len(chosen), 2, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(chosen.shape, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(chosen.numel(), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dispatch.spread, (tokens,))
    assert torch.autograd.gradcheck(dispatch.collect, (rows,))
    assert torch.autograd.gradcheck(dispatch.collect, (rows, gates))


@pytest.mark.parametrize(("backend", "dtype"), WAYS)
@pytest.mark.parametrize("name", ROUTES)
def test_backend_computes_the_dense_mixture(name: str, backend: str, dtype: torch.dtype) -> None:
    chosen, values = case(name, dtype)
    reference = [value.detach().double().requires_grad_() for value in values]
    wanted = with_gradients(lambda: dense_mixture(chosen, reference), reference)
    found = with_gradients(lambda: mlp(chosen, values, backend), values)
    assert {f.dtype for f in found} == {dtype}
    assert_near(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize(("backend", "dtype"), WAYS)
@pytest.mark.parametrize("bias", [True, False])
def test_product_is_a_product_per_row(backend: str, bias: bool, dtype: torch.dtype) -> None:
    chosen, (tokens, _, weight, vector, *_) = case("empty_experts", dtype)
    dispatch = Dispatch.of(chosen, len(weight))
    expert = chosen.flatten()[dispatch.order]
    values = [tokens, weight, *([vector] if bias else [])]
    reference = [value.detach().double().requires_grad_() for value in values]

    def by_row() -> Tensor:
        rows, matrices, *rest = reference
        product = torch.einsum("rk,rkn->rn", rows[dispatch.order // dispatch.top_k], matrices[expert])
        return product + rest[0][expert] if rest else product

    def by_backend() -> Tensor:
        return segment_matmul(dispatch.spread(tokens), weight, dispatch, vector if bias else None, backend=backend)

    assert_near(with_gradients(by_backend, values), with_gradients(by_row, reference), TOLERANCE[dtype])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "grouped"])
def test_expert_without_tokens_gets_zero_gradients(backend: str) -> None:
    chosen, values = case("empty_experts", torch.bfloat16)
    _, _, _, *of_weights = with_gradients(lambda: mlp(chosen, values, backend), values)
    for gradient in of_weights:
        assert torch.equal(gradient[[0, 4, 8]], torch.zeros_like(gradient[[0, 4, 8]]))
        assert gradient[[1, 2, 3]].ne(0).any(-1).all()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "grouped"])
def test_widths_may_be_odd(backend: str) -> None:
    chosen, values = case("random", torch.float32, width=7, hidden=5)
    reference = [value.detach().double().requires_grad_() for value in values]
    wanted = with_gradients(lambda: dense_mixture(chosen, reference), reference)
    assert_near(with_gradients(lambda: mlp(chosen, values, backend), values), wanted, 3e-6)


@pytest.mark.parametrize("backend", ["naive", "segment", "padded"])
def test_order_of_experts_does_not_matter(backend: str) -> None:
    chosen, values = case("random")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    moved = [value if i < 2 else value[order] for i, value in enumerate(values)]
    assert_near([mlp(order.argsort()[chosen], moved, backend)], [mlp(chosen, values, backend)], 1e-13)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "grouped"])
def test_gated_experts_are_the_dense_mixture_of_gated_mlps(backend: str) -> None:
    chosen, (tokens, gates, w1, b1, w2, b2) = case("random")
    double = [torch.cat([one, one.flip(-1) - 0.5], -1).detach().requires_grad_() for one in (w1, b1)]
    values = [tokens, gates, *double, w2, b2]

    def wanted() -> Tensor:
        a, b = (torch.einsum("nd,edh->neh", tokens, double[0]) + double[1]).chunk(2, -1)
        mixture = torch.zeros(len(tokens), len(w1), dtype=gates.dtype).scatter(1, chosen, gates)
        return torch.einsum("ne,ned->nd", mixture, torch.einsum("neh,ehd->ned", F.gelu(a) * b, w2) + b2)

    found = with_gradients(lambda: mlp(chosen, values, backend), values)
    assert_near(found, with_gradients(wanted, values), TOLERANCE[torch.float64])


def test_equal_experts_with_gates_of_sum_one_are_one_mlp() -> None:
    chosen, (tokens, gates, *weights) = case("random")
    w1, b1, w2, b2 = (weight[0] for weight in weights)
    equal = [weight[:1].expand_as(weight) for weight in weights]
    found = mlp(chosen, [tokens, gates.softmax(1), *equal], "segment")
    assert_near([found], [F.gelu(tokens @ w1 + b1) @ w2 + b2], 1e-13)


@pytest.mark.parametrize("group", [1, 20, 10_000])
def test_groups_of_experts_change_nothing(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(fused_mlp, "GROUP", group)
    chosen, values = case("random")
    wanted = with_gradients(lambda: dense_mixture(chosen, values), values)
    assert_near(with_gradients(lambda: mlp(chosen, values, "segment"), values), wanted, 1e-13)


@pytest.mark.parametrize("backend", ["naive", "segment", "padded"])
def test_gradcheck(backend: str) -> None:
    chosen, values = case("random", width=2, hidden=3)
    values[0] = values[0][:6].detach().requires_grad_()
    values[1] = values[1][:6].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: mlp(chosen[:6], list(v), backend), values)


def test_product_of_segments_can_be_differentiated_twice() -> None:
    rows, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(5, 2), (3, 2, 2), (3, 2)])
    sizes = torch.tensor([2, 0, 3])
    assert torch.autograd.gradgradcheck(lambda *v: segment_products.matmul(*v, sizes), (rows, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_their_contracts(dtype: torch.dtype) -> None:
    """PyTorch's own checks: schema, autograd registration, fake tensors, AOT with dynamic shapes."""
    chosen, (tokens, gates, w1, b1, w2, _) = case("empty_experts", dtype)
    dispatch = Dispatch.of(chosen, len(w1))
    rows = dispatch.spread(tokens).detach().requires_grad_()
    index = (dispatch.order, dispatch.inverse, dispatch.sizes)
    torch.library.opcheck(segment_products.matmul, (rows, w1, b1, dispatch.sizes))
    torch.library.opcheck(segment_products.matmul, (rows, w1, None, dispatch.sizes))
    torch.library.opcheck(segment_products.outer, (rows, rows.detach()[:, :5].contiguous(), dispatch.sizes))
    # The hidden values have spare rows that nothing writes: values are compared elsewhere.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fused_mlp.forward, (tokens, gates, w1, b1, w2, *index), test_utils=utilities)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("auto", torch.float32),
        ("auto", torch.bfloat16),
        ("segment", torch.float64),
        ("padded", torch.float32),
        ("grouped", torch.bfloat16),
    ],
)
def test_compiled_in_one_graph_equals_eager(backend: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda c, v: mlp(c, v, backend), fullgraph=True, backend="aot_eager")
    for name in ("random", "empty_experts"):
        chosen, values = case(name, dtype)
        wanted = with_gradients(lambda c=chosen, v=values: mlp(c, v, backend), values)
        found = with_gradients(lambda c=chosen, v=values: compiled(c, v), values)
        assert_near(found, [w.double() for w in wanted], TOLERANCE[dtype])


def test_export_holds_only_operators_of_pytorch() -> None:
    class Module(torch.nn.Module):
        def __init__(self, weights: list[Tensor]) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(weights)

        def forward(self, chosen: Tensor, tokens: Tensor, gates: Tensor) -> Tensor:
            return mlp(chosen, [tokens, gates, *self.weights], "auto")

    chosen, (tokens, gates, *weights) = case("random", torch.float32)
    program = torch.export.export(Module(weights), (chosen, tokens, gates))
    assert not any("mtlbench" in str(node.target) for node in program.graph.nodes)
    other = (chosen.flip(0) + 1) % 8  # other routes through the same graph
    found = program.module()(other, tokens, gates)
    assert_near([found], [mlp(other, [tokens, gates, *weights], "naive").double()], 3e-6)


@pytest.mark.parametrize("backend", ["segment", "padded", "grouped"])
def test_autocast_casts_as_for_a_linear_layer(backend: str) -> None:
    chosen, values = case("random", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = with_gradients(lambda: mlp(chosen, values, "naive"), values)
        found = with_gradients(lambda: mlp(chosen, values, backend), values)
    assert [f.dtype for f in found] == [torch.bfloat16, *[torch.float32] * 6]
    assert_near(found, [w.double() for w in wanted], TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_without_strides_is_taken(backend: str) -> None:
    chosen, values = case("random", torch.float32)
    gradients = torch.autograd.grad(mlp(chosen, values, backend).sum(), values)
    reference = [value.detach().double().requires_grad_() for value in values]
    wanted = torch.autograd.grad(dense_mixture(chosen, reference).sum(), reference)
    assert_near(list(gradients), list(wanted), 3e-6)
    dispatch = Dispatch.of(chosen, len(values[2]))
    product = segment_matmul(dispatch.spread(values[0]), values[2], dispatch, backend=backend)
    assert torch.autograd.grad(product.sum(), values[2])[0].shape == values[2].shape


@pytest.mark.parametrize("backend", ["segment", "grouped", "naive"])
def test_flops_follow_the_formula(backend: str) -> None:
    """Forward: N·k rows by two D × h products, and the second biases by the (N, E) gates; backward: twice that.

    ``grouped`` has no product with a bias, and multiplies constant (N·k, E) memberships by the first ones.
    """
    chosen, values = case("random", torch.float32)
    count, top_k, experts = ROUTES["random"]
    with FlopCounterMode(display=False, custom_mapping=flop_mapping()) as counter:
        result = mlp(chosen, values, backend)
        forward = counter.get_total_flops()
        result.square().sum().backward()
    wanted = 2 * count * top_k * 2 * WIDTH * HIDDEN + 2 * count * experts * WIDTH
    biases = 2 * count * top_k * experts * HIDDEN if backend == "grouped" else 0
    assert forward == wanted + biases
    assert counter.get_total_flops() == 3 * wanted + 2 * biases


def test_segment_keeps_only_hidden_values() -> None:
    """The backward pass holds the inputs, their routes, and one array of N·k rows."""
    chosen, values = case("large", torch.float32)
    dispatch, saved = Dispatch.of(chosen, 4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        expert_mlp(*values[:2], dispatch, *values[2:], backend="segment")
    of_rows = [t for t in saved if t.is_floating_point() and len(t) == chosen.numel()]
    assert [t.shape for t in of_rows] == [(chosen.numel(), HIDDEN)]


def test_shapes_of_16_bit_products_are_few() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    sizes = torch.arange(0, 4096)
    layout = segment_products.Layout.of(sizes, like)
    heights = torch.tensor([part.stop - part.start for part in layout.parts])
    assert len(heights.unique()) < 150
    assert (heights >= sizes).all()
    assert (heights <= sizes + torch.maximum(torch.tensor(15), sizes // 32)).all()
    assert len(layout.source) <= segment_products.most_rows(int(sizes.sum()), len(sizes), like)
    rows = torch.arange(1, int(sizes[:40].sum()) + 1, dtype=torch.bfloat16).unsqueeze(1)
    layout = segment_products.Layout.of(sizes[:40], like)
    assert torch.equal(layout.give(layout.take(rows)), rows)
    assert int(layout.take(rows).count_nonzero()) == len(rows)
    assert segment_products.Layout.of(sizes, torch.empty(0)).gaps == []


def test_refusals_name_the_fault() -> None:
    chosen, values = case("random")
    with pytest.raises(MethodError, match="Unknown backend 'segmnt'. Did you mean 'segment'"):
        mlp(chosen, values, "segmnt")
    with pytest.raises(
        MethodError, match=r"'grouped' needs operands of one type with 16 or 32 bits; found torch.float64"
    ):
        mlp(chosen, values, "grouped")
    with pytest.raises(MethodError, match=r"multiples of 16 bytes; found \(6, 8\) in torch.float32"):
        mlp(*case("random", torch.float32, width=6, hidden=8), "grouped")
