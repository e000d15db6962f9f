"""Compares streamed samples with the decode cache, and says what binds: ``python -m benchmarks.streaming [images]``.

The first part measures with the sizes of Taskonomy's thirteen tasks at 224 x 224. Times are those of this process on
the processor, reading ahead included, so that other processes change them little. Sources take turns, and ratios are
taken within a turn. The second part is arithmetic: which of network, disk and cores limits a GPU, from the costs that
the first part measured and the assumptions that it prints.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import contextlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.arguments import call  # noqa: E402
from mtlbench.data.windows import Ahead  # noqa: E402
from mtlbench.data_modules.miniatures import taskonomy as miniature  # noqa: E402
from mtlbench.data_modules.taskonomy import MAPS, Taskonomy  # noqa: E402

IMAGES, SHARD, WINDOW = 192, 16, 2
FILES_MB = 12e6 / 4.6e6
"""Megabytes of the original files of a sample: 12 TB of 4.6 million samples at 512 x 512."""


class Random(Taskonomy):
    """Random samples in the form of decoded ones, so that nothing has to be rendered."""

    ids: list[str]
    VERSION = 10**6

    def decode(self, image: str, tasks: Any) -> Any:
        generator = np.random.default_rng(int(image))
        size = self.recipe.stored
        labels: dict[str, Any] = {}
        for task in tasks:
            if task not in MAPS:
                labels[task] = generator.dirichlet(np.ones(self.tasks[task].channels)).astype(np.float32)
            elif task == "normal":
                labels[task] = generator.integers(0, 256, (*size, 3), np.uint8)
            else:
                kind = np.float32 if task.startswith("depth") else np.float16
                channels = (2,) if task == "principal_curvature" else ()
                labels[task] = generator.random((*size, *channels), np.float32).astype(kind)
        return generator.integers(0, 256, (*size, 3), np.uint8), labels


class Listed:
    """Stands in for files: ids, and nothing else."""

    folder = None

    def ids(self, split: str) -> list[str]:
        return [str(number) for number in range(IMAGES if split == "train" else SHARD)]

    def missing(self, *_: object) -> list[str]:
        return []

    def absent(self, task: str) -> list[str]:
        return []

    def fingerprint(self, *_: object, **__: object) -> str:
        return "random"


def opened(source: str | None = None, space: float = 50.0) -> Random:
    data = Random(None, window=WINDOW, shard=SHARD, source=source, space=space)
    if not source:
        data.files = Listed()
    return data


def reader(data: Random, *, augment: bool) -> Callable[[], object]:
    """Returns a function that reads the next sample of a run."""

    def order(epoch: int) -> np.ndarray:
        return data.window.order(IMAGES, np.random.default_rng(epoch))  # type: ignore[union-attr]

    samples = data.samples("train")
    ahead = Ahead(order, samples.prefetch or (lambda coming: None), SHARD)
    keys = ((epoch, int(index)) for epoch in range(10**6) for index in order(epoch))

    def read() -> object:
        epoch, index = next(keys)
        ahead(epoch, index)
        sample = samples[index]
        return data.augment(sample, np.random.default_rng(index)) if augment else sample

    return read


def rate(read: Callable[[], object], count: int) -> float:
    """Returns samples per second."""
    start = time.process_time()
    for _ in range(count):
        read()
    return count / (time.process_time() - start)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder from another process on this machine; yields its address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}"  # type: ignore[union-attr]
        finally:
            server.terminate()


def decoding(folder: Path) -> float:
    """Returns the seconds that decoding one sample of thirteen tasks takes from files of 512 x 512."""
    miniature.SIZE = (512, 512)
    miniature.write_taskonomy(folder, train=2, val=1, test=1)
    os.environ["MTLBENCH_CACHE"] = "off"
    samples = Taskonomy(str(folder), size=224).samples("train")
    times = []
    for _ in range(4):
        start = time.process_time()
        _ = samples[0], samples[1]
        times.append((time.process_time() - start) / 2)
    return min(times)


def measured(count: int) -> dict[str, float]:
    """Prints rates and ratios; returns the milliseconds of a sample."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, served(Path(place)) as address:
        os.environ["MTLBENCH_CACHE"] = place + "/cache"
        os.environ["MTLBENCH_CACHE_GB"] = "8"
        opened().shard(place + "/shards")
        readers = {"decode cache": opened(), "shards, all in the local space": opened(f"{place}/shards")}
        costs: dict[str, float] = {}
        for augment in (False, True):
            made = {name: reader(data, augment=augment) for name, data in readers.items()}
            for read in made.values():  # into the page cache and the local space
                for _ in range(IMAGES):
                    read()
            _compare(made, count, costs, augment)
        few = (WINDOW + 2) * SHARD * 2.15e6 / 2**30
        print(f"  local space for {WINDOW + 2} of {IMAGES // SHARD} shards:")
        os.environ["MTLBENCH_CACHE"] = place + "/few"
        sources = {"from a folder": f"{place}/shards", "over HTTP": f"{address}/shards"}
        streamed = {f"shards {name}": reader(opened(url, few), augment=True) for name, url in sources.items()}
        _compare({"decode cache": made["decode cache"], **streamed}, IMAGES, costs, True)
        costs["files"] = 1000 * decoding(Path(place, "files"))
        print(f"  decoding a sample from files of 512 x 512: {costs['files']:.0f} ms")
        return costs


def _compare(made: dict[str, Callable[[], object]], count: int, costs: dict[str, float], augment: bool) -> None:
    turns = [{name: rate(read, count) for name, read in made.items()} for _ in range(3)]
    print("read and augmented" if augment else "read")
    for name in made:
        ratios = sorted(turn[name] / turn["decode cache"] for turn in turns)
        found = float(np.median([turn[name] for turn in turns]))
        print(f"  {name:32} {found:7.1f} samples/s   {ratios[1]:.2f} of the cache ({ratios[0]:.2f}..{ratios[-1]:.2f})")
        costs[f"{name}{', augmented' if augment else ''}"] = 1000 / found


# ---- arithmetic -----------------------------------------------------------------------------------------------------

GPUS, CORES = 8, 96
"""Assumed: a node."""
IMAGES_PER_SECOND = {224: 1000.0, 512: 1000.0 * (224 / 512) ** 2}
"""Assumed: images that a GPU trains in a second, in proportion to 1 / pixels."""
DISK = 2.0
"""Assumed: GB/s that the local disk writes."""
STORE = 50.0
"""Assumed: GB/s that the store delivers to all nodes together."""


def sample_mb(size: int, tasks: int) -> float:
    """Returns the megabytes of a decoded sample: all thirteen tasks, or one map of half precision."""
    data = Random(None, size=size)
    image, labels = data.decode("0", data.tasks if tasks == 13 else ["keypoints2d"])
    return (image.nbytes + sum(label.nbytes for label in labels.values())) / 1e6


def limits(size: int, megabytes: float, ms: float, nodes: int, gbit: float) -> dict[str, float]:
    """Returns the images per second and GPU that each part allows."""
    return {
        "network": gbit / 8 * 1000 / megabytes / GPUS,
        "store": STORE * 1000 / megabytes / GPUS / nodes,
        "disk": DISK * 1000 / megabytes / GPUS,
        "cores": CORES / (ms / 1000) / GPUS,
        "GPU": IMAGES_PER_SECOND[size],
    }


def tabulated(costs: dict[str, float]) -> None:
    """Prints what a GPU needs, and what binds."""
    ms = costs["shards over HTTP, augmented"]
    print(f"\n{GPUS} GPUs and {CORES} cores per node; disk writes {DISK} GB/s; store gives {STORE} GB/s in all")
    print("| size | read | MB per image | GB/s per GPU | ms per image and core | cores per GPU |")
    print("|---|---|---|---|---|---|")
    forms = []
    for size, speed in IMAGES_PER_SECOND.items():
        pixels = (size / 224) ** 2
        forms += [
            (size, "shards, 13 tasks", sample_mb(size, 13), ms * pixels),
            (size, "shards, one task", sample_mb(size, 1), ms * pixels * sample_mb(size, 1) / sample_mb(size, 13)),
            (size, "files, 13 tasks", FILES_MB, ms * pixels + costs["files"]),
        ]
        for _, form, megabytes, each in forms[-3:]:
            cells = f"{megabytes:.2f} | {megabytes * speed / 1000:.2f} | {each:.1f} | {each * speed / 1000:.0f}"
            print(f"| {size} | {form} | {cells} |")
    print("\nimages/s per GPU, and what binds")
    print("| size | read | " + " | ".join(f"{n} node(s), {g} Gbit/s" for n in (1, 16, 64) for g in (10, 100)) + " |")
    print("|---" * 8 + "|")
    for size, form, megabytes, each in forms:
        found = [limits(size, megabytes, each, nodes, gbit) for nodes in (1, 16, 64) for gbit in (10, 100)]
        cells = [min((value, name) for name, value in one.items()) for one in found]
        print(f"| {size} | {form} | " + " | ".join(f"{value:,.0f} {name}" for value, name in cells) + " |")


def main(images: int = IMAGES) -> None:
    tabulated(measured(images))


if __name__ == "__main__":
    call(main, __doc__)
