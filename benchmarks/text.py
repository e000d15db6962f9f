"""Prints costs of training on texts on one core: ``python -m benchmarks.text [DATA] [steps]``.

DATA is the folder of ``mtlbench data text --download``; without it, random texts of the lengths of sentences. Times are
those of this process on the processor, so that other processes change them little. Networks have random weights.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from benchmarks.arguments import call  # noqa: E402
from mtlbench.data.contract import streams  # noqa: E402
from mtlbench.data_modules.text import Text  # noqa: E402
from mtlbench.data_modules.text_sets import News, Sentiment  # noqa: E402
from mtlbench.data_modules.union import Union  # noqa: E402
from mtlbench.method import MethodSpec  # noqa: E402
from mtlbench.tasks.inputs import inputs_of  # noqa: E402
from mtlbench.training.build import build_method  # noqa: E402

LENGTH, BATCH = 64, 32
SIZES = {
    "small": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}


def written(folder: Path) -> str:
    """Writes 3000 random texts whose lengths are those of sentences."""
    generator = np.random.default_rng(0)
    counts = generator.lognormal(2.7, 0.6, 3000).astype(int).clip(1, 200)
    texts = [" ".join(map(str, generator.integers(0, 5000, count))) for count in counts]
    pd.DataFrame({"text": texts, "n": generator.integers(0, 9, 3000)}).to_csv(folder / "texts.csv", index=False)
    return str(folder)


def loader(data: Any) -> tuple[float, float]:
    """Returns the tokens per second of a loader, and the share of padding in its batches."""
    start, tokens, places = time.process_time(), 0, 0
    for batch in data.train_dataloader():
        for stream in streams(batch):
            mask = inputs_of(stream)["mask"]
            tokens, places = tokens + int(mask.sum()), places + mask.numel()
    return tokens / (time.process_time() - start), 1 - tokens / places


def step_seconds(name: str, arguments: dict[str, Any], data: Any, size: str) -> tuple[float, float]:
    """Returns the median time of a forward and backward pass, and the mean number of tokens of a batch."""
    model = {
        "encoder": "transformers:bert",
        "encoder_options": SIZES[size],
        "inputs": data.input_sizes(),
        "decoder_channels": 64,
    }
    torch.manual_seed(0)
    method = build_method({"path": name, "arguments": arguments}, MethodSpec(data.tasks, model))
    method.configure_model()
    times, counts = [], []
    for batch in data.train_dataloader():
        start = time.process_time()
        total = torch.zeros(())
        for stream in streams(batch):
            found = method.network(inputs_of(stream), list(stream["targets"])).predictions
            total = total + sum(method.tasks[t].loss(p, stream["targets"][t]) for t, p in found.items())
        total.backward()
        method.zero_grad()
        times.append(time.process_time() - start)
        counts.append(sum(stream["tokens"] for stream in streams(batch)))
    return float(np.median(times[1:])), float(np.mean(counts))


def main(data: str = "", steps: int = 20) -> None:
    """Prints all parts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MTLBENCH_CACHE"] = f"{folder}/cache"
        made = written(Path(folder))
        common = {"length": LENGTH, "batch_size": BATCH, "steps": 3000 // BATCH}
        table = {"file": "texts.csv", "targets": {"n": {"kind": "count"}}}
        sets: dict[str, Any] = {"random": lambda **more: Text(made, **table, **common, **more)}
        if data:
            domains = ("tweets", "movies", "shopping", "editorials")
            sets = {name: lambda name=name, **more: Sentiment(data, domain=name, **common, **more) for name in domains}
            sets["news"] = lambda **more: News(data, **common, **more)
        print("padding of training batches of 32 texts: in order, and by length; tokens per second of the loader")
        for name, build in sets.items():
            (_, plain), (rate, bucketed) = loader(build(buckets=False)), loader(build())
            print(f"  {name:12} {plain:6.1%} {bucketed:6.1%} {rate:12,.0f}")
        first = next(iter(sets.values()))()
        first.steps = steps
        print("\nforward and backward: ms per batch of 32, tokens per second")
        for size in SIZES:
            rows = {
                "dense": ("uniform", {}),
                "moe, split": ("moe", {"experts": 4, "start": "split"}),
                "moe, copy": ("moe", {"experts": 4, "start": "copy"}),
            }
            for label, (name, arguments) in rows.items():
                seconds, tokens = step_seconds(name, arguments, first, size)
                print(f"  {size:8} {label:12} {1000 * seconds:8.0f} {tokens / seconds:10,.0f}")
        print("\nfour tasks in a batch of 32, and one: ms per batch")
        given = {
            f"s{i}": {"module": "data_modules.text:Text",
                      "options": {**table, "targets": {f"n{i}": {"kind": "count", "column": "n"}}, "length": LENGTH}}
            for i in range(4)
        }  # fmt: skip
        for name in ("uniform", "task_moe"):
            found = []
            for slots in (4, 1):
                data = Union(made, streams=given, mixing="uniform", slots=slots, batch_size=BATCH, steps=steps)
                found.append(step_seconds(name, {}, data, "small")[0])
            print(f"  {name:12} {1000 * found[0]:8.0f} {1000 * found[1]:8.0f}")


if __name__ == "__main__":
    call(main, __doc__)
