"""Prints the cost of sparse experts: ``python -m benchmarks.experts [pairs]``.

The cost is the time of a forward and backward pass of a sparse MLP relative to a dense one of equal active FLOPs: k
experts of width 4 D / k against one MLP of width 4 D. Each pair has new routes, either balanced (all experts equally
likely) or skewed (Zipf: expert i has probability proportional to 1 / i). Dispatch is measured, routing is not. Both
networks take turns in one process. Times are CPU times of one thread, or wall times on a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import call
from benchmarks.pairs import DEVICE, clock, spread
from mtlbench.networks.experts.dispatch import Dispatch, expert_mlp
from mtlbench.training.malloc import keep_freed_memory

Step = Callable[[], None]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOP_K = 4
WARMUP = 20  # pairs; in 16 bits, the first of every shape compiles a kernel


def main(pairs: int = 25) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as in every run
    over_dense(pairs)
    growth(pairs)


def over_dense(pairs: int) -> None:
    print("| type | tokens | D | balanced | skewed | dense, ms |\n|---|---|---|---|---|---|")
    for name, dtype in TYPES.items():
        for width in (192, 384):
            for tokens in (1024, 4096, 16384):
                even, skewed = (measure(Case(tokens, width, 16, zipf, dtype), pairs) for zipf in (0.0, 1.0))
                _row([name, tokens, width], even, skewed)
    print(
        f"\nSparse over dense: E = 16, k = {TOP_K}; medians and quartiles of interleaved ratios, {pairs} at up to 4096 "
        f"tokens, else a quarter.\nAims: at most 1.2 balanced, 1.6 skewed.\n"
    )


def growth(pairs: int) -> None:
    print("| type | experts | balanced | skewed | dense, ms |\n|---|---|---|---|---|")
    for name, dtype in TYPES.items():
        for experts in (8, 16, 32, 64):
            even, skewed = (measure(Case(4096, 192, experts, zipf, dtype), pairs) for zipf in (0.0, 1.0))
            _row([name, experts], even, skewed)
    print(f"\n4096 tokens, D = 192, k = {TOP_K}: active FLOPs are the same in all rows.")


@dataclass(frozen=True)
class Case:
    """One size. ``zipf`` is the exponent of the experts' probabilities, 0 if balanced."""

    tokens: int
    width: int
    experts: int
    zipf: float
    dtype: torch.dtype

    def draw(self, *shape: int) -> Tensor:
        return (0.05 * torch.randn(shape)).to(DEVICE, self.dtype).requires_grad_()

    def route(self) -> Tensor:
        """Returns new choices: (N, k), distinct in each row."""
        likelihood = torch.arange(1, self.experts + 1) ** -self.zipf
        return torch.multinomial(likelihood.expand(self.tokens, -1), TOP_K).to(DEVICE)


def measure(case: Case, pairs: int, *, backend: str = "auto", warmup: int = WARMUP) -> list[tuple[float, float]]:
    """Returns seconds of a sparse and of a dense step, for every pair after the warm-up."""
    torch.manual_seed(0)
    renew, sparse = sparse_step(case, backend)
    dense = dense_step(case)
    rounds = pairs if case.tokens <= 4096 else max(5, pairs // 4)
    found = []
    for _ in range(warmup + rounds):
        renew()
        times = [clock()]
        for step in (sparse, dense):
            step()
            times.append(clock())
        found.append((times[1] - times[0], times[2] - times[1]))
    return found[warmup:]


def sparse_step(case: Case, backend: str = "auto") -> tuple[Step, Step]:
    """Returns a function that draws new routes, and one that runs forward and backward."""
    width, hidden, experts = case.width, 4 * case.width // TOP_K, case.experts
    shapes = ((experts, width, hidden), (experts, hidden), (experts, hidden, width), (experts, width))
    tokens, weights = case.draw(case.tokens, width), [case.draw(*shape) for shape in shapes]
    upstream, routes = case.draw(case.tokens, width).detach(), {}

    def renew() -> None:
        routes["chosen"] = case.route()
        routes["gates"] = torch.rand(case.tokens, TOP_K).to(DEVICE, case.dtype).requires_grad_()

    def step() -> None:
        dispatch = Dispatch.of(routes["chosen"], experts)
        result = expert_mlp(tokens, routes["gates"], dispatch, *weights, backend=backend)
        torch.autograd.grad(result, [tokens, routes["gates"], *weights], upstream)

    return renew, step


def dense_step(case: Case) -> Step:
    width = case.width
    shapes = ((4 * width, width), (4 * width,), (width, 4 * width), (width,))
    tokens, weights = case.draw(case.tokens, width), [case.draw(*shape) for shape in shapes]
    upstream = case.draw(case.tokens, width).detach()
    w1, b1, w2, b2 = weights

    def step() -> None:
        result = F.linear(F.gelu(F.linear(tokens, w1, b1)), w2, b2)
        torch.autograd.grad(result, [tokens, *weights], upstream)

    return step


def _row(names: Sequence[object], even: list[tuple[float, float]], skewed: list[tuple[float, float]]) -> None:
    ratios = [spread([sparse / dense for sparse, dense in found], ".2f") for found in (even, skewed)]
    dense = 1000 * statistics.median(dense for _, dense in even)
    print("| " + " | ".join([*map(str, names), *ratios, f"{dense:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    call(main, __doc__)
