"""Prints the speed of the scene renderer on one core: ``python -m benchmarks.renderer [size] [images] [repeats]``."""

from __future__ import annotations

import os

# One core means one thread. This must be set before numpy loads its linear algebra.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import statistics  # noqa: E402
import time  # noqa: E402

from benchmarks.arguments import call  # noqa: E402
from mtlbench.data_modules.rendering import describe, render  # noqa: E402


def main(size: int = 64, images: int = 100, repeats: int = 5) -> None:
    render(0, range(5), size, size)
    times = []
    for repeat in range(repeats):
        start = time.perf_counter()
        render(1 + repeat, range(images), size, size)
        times.append((time.perf_counter() - start) / images)
    median = statistics.median(times)
    solids = statistics.mean(sum(len(thing.solids) for thing in describe(1, i).things) for i in range(images))
    print(
        f"{size} x {size}, one thread, {solids:.0f} solids a scene: {1 / median:.1f} images/s, "
        f"{1000 * median:.1f} ms/image (median of {repeats} x {images}; "
        f"{1000 * min(times):.1f} to {1000 * max(times):.1f})"
    )


if __name__ == "__main__":
    call(main, __doc__)
