"""CPU time of a linear layer that skips entries equal to their reference, relative to the dense product.

    OMP_NUM_THREADS=1 python -m benchmarks.sharing [--tokens 1024]

The layers are those of a ViT-B. Unchanged tokens are skipped by a gather, unchanged entries at arbitrary positions by a
sparse (CSR) matrix that is built in every pass, and unchanged weights by a sparse matrix that is built once.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from mtlbench.networks.sharing.referenced_vit import linear_from_reference

REPEATS = 7
LAYERS = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def milliseconds(work: Callable[[], object]) -> float:
    """Returns the median CPU time of a call, after one warm-up call."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def entries(shape: tuple[int, ...], share: float) -> Tensor:
    """Returns a tensor with the given share of non-zero entries at random positions."""
    return torch.randn(shape) * (torch.rand(shape) < share)


def rows(shape: tuple[int, ...], share: float) -> Tensor:
    """Returns a tensor with the given share of non-zero rows."""
    return torch.randn(shape) * (torch.rand(shape[0], 1) < share)


@torch.no_grad()
def compare(name: str, tokens: int, inputs: int, outputs: int) -> None:
    """Prints the time of each variant divided by that of the dense product."""
    reference, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    output, zero = reference @ weight.T, torch.zeros(tokens, inputs)
    dense = milliseconds(lambda: reference @ weight.T)
    print(f"{name} {inputs} -> {outputs}: dense {dense:.1f} ms")
    for share in SHARES:
        by_row = reference + rows((tokens, inputs), share)
        changed = entries((tokens, inputs), share)
        weights = entries((outputs, inputs), share).to_sparse_csr()
        ways = {
            "tokens": lambda x=by_row: linear_from_reference(x, reference, output, weight),
            "entries": lambda x=changed: output + x.to_sparse_csr() @ weight.T,
            "weights": lambda w=weights: linear_from_reference(zero, zero, output, weight, w),
        }
        found = {way: milliseconds(work) / dense for way, work in ways.items()}
        print(f"  {share:4.0%} changed: " + "  ".join(f"{way} {x:5.2f}" for way, x in found.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    tokens = parser.parse_args().tokens
    warnings.filterwarnings("ignore", message="Sparse CSR")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"one thread, float32, {tokens} tokens; 1.00 is the dense product")
    for name, (inputs, outputs) in LAYERS.items():
        compare(name, tokens, inputs, outputs)
