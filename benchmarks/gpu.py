"""Checks and times training on a GPU: ``python -m benchmarks.gpu [PART ...] [--small] [--json gpu.json]``.

Parts: ``correct`` (CUDA against the CPU, precisions, NCCL, resume, waits of the host), ``surgery`` (steps of gradient
rules over their floor), ``experts`` (sparse over dense at equal FLOPs), ``data`` (images per second against a step) and
``bench`` (the suite scenes). Together they end within 8 minutes on one H100; what does not fit is printed as left out.
Without a GPU, ``--small`` runs the same code on tiny networks.
"""

from __future__ import annotations

import os

# Equal results of two runs need deterministic products. cuBLAS reads this before its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import argparse
import csv
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.networks import CASES, FIVE, SMALL_VIT, Case, depths, named
from benchmarks.pairs import DEVICE, OneBatch, clock, losses_of, measure

SECONDS = {"correct": 85.0, "surgery": 110.0, "experts": 45.0, "data": 40.0, "bench": 180.0}
"""Longest time of each part, 460 s in all."""

RULES = ("uniform", "famo", "pcgrad", "task_moe", "mod_squad")
Rows = list[dict[str, Any]]


@dataclass
class Run:
    """What the command line asked for, and the rows found so far.

    Attributes:
        small: Whether to run tiny networks.
        reference: ``leaderboard.csv`` of a bench of the same suite on a CPU, or None.
        rows: By part.
        ends: When the present part must be over.
    """

    small: bool = False
    reference: Path | None = None
    rows: dict[str, Rows] = field(default_factory=dict)
    ends: float = float("inf")

    def add(self, part: str, name: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Adds a row and prints it: what ``make`` returns, the error that it raised, or that no time was left."""
        start = time.monotonic()
        if start > self.ends:
            found: dict[str, Any] = {"left out": "no time left"}
        else:
            try:
                found = dict(make())
            except Exception as error:  # One row that fails must not cost the others: a GPU is there for minutes.
                found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
            gc.collect()  # Trainers and methods refer to each other, and hold memory of the device.
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
        row = {"what": name, **found, "seconds": round(time.monotonic() - start, 2)}
        self.rows.setdefault(part, []).append(row)
        print("  " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)


# ---- 1: correctness -------------------------------------------------------------------------------------------------


def correct(run: Run) -> None:
    """Trains toy runs on the device, compares them, and looks for waits of the host."""
    precisions = ("32-true", "bf16-mixed") if DEVICE.type == "cpu" else ("32-true", "bf16-mixed", "16-mixed")
    rules = ("uniform", "pcgrad") if run.small else RULES
    run.add("correct", "a planted .item() is found", lambda: {"ok": not waits("uniform", planted=True)["ok"]})
    for rule in RULES:
        run.add("correct", f"{rule}, waits of the host", lambda rule=rule: waits(rule))
    run.add("correct", "one rank and its collectives", _one_rank)
    for rule in rules:
        run.add("correct", f"{rule}, float64, device against CPU", lambda rule=rule: _parity(rule))
    for precision in precisions[-1:] if run.small else precisions:
        for rule in rules[-1:] if run.small else rules:
            run.add("correct", f"{rule}, {precision}, stop and resume", lambda r=rule, p=precision: _resume(r, p))


def _parity(rule: str) -> dict[str, Any]:
    from mtlbench.testing import difference, toy_spec

    with mock.patch("torch.cuda.is_available", lambda: False):
        expected = _trained(toy_spec(rule, steps=4))
    found = difference(_on_host(expected), _on_host(_trained(toy_spec(rule, steps=4))))
    return {"difference": found, "ok": found <= 1e-7}


def _resume(rule: str, precision: str) -> dict[str, Any]:
    from mtlbench.testing import difference, toy_spec

    spec = toy_spec(rule, steps=6, precision=precision)  # Runs stop after every fifth step.
    straight = _trained(spec)
    found = difference(_on_host(straight), _on_host(_trained(spec, stop_at=1)))
    finite = all(t.isfinite().all() for t in straight.values() if isinstance(t, torch.Tensor) and t.is_floating_point())
    return {"difference": found, "ok": finite and found <= (0.0 if DEVICE.type == "cpu" else 1e-2)}


def _one_rank() -> dict[str, Any]:
    from lightning.pytorch.strategies import DDPStrategy

    from mtlbench import distributed
    from mtlbench.testing import difference, toy_spec
    from mtlbench.training import trainer

    backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
    spec = toy_spec("uniform", steps=3)
    alone = _trained(spec)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}

    def ddp(_: torch.device) -> DDPStrategy:
        return DDPStrategy(process_group_backend=backend, broadcast_buffers=False)

    with tempfile.NamedTemporaryFile() as meeting, mock.patch.dict(os.environ, group):
        torch.distributed.init_process_group(backend, init_method=f"file://{meeting.name}-x", rank=0, world_size=1)
        try:
            with mock.patch.object(trainer, "SingleDeviceStrategy", ddp):
                found = difference(_on_host(alone), _on_host(_trained(spec)))
            row = torch.arange(4.0, device=DEVICE)
            same = torch.equal(distributed.gather(distributed.scatter_mean(row.clone())), row)
        finally:
            torch.distributed.destroy_process_group()
    return {"backend": backend, "difference": found, "ok": same and found <= 1e-7}


def waits(rule: str, *, planted: bool = False) -> dict[str, Any]:
    """Returns where the host waits for the device in the watched steps of a rule."""
    from benchmarks.host_waits import LAST, Watch
    from mtlbench.runs.spec import RunSpec
    from mtlbench.training.trainer import build_trainer

    case = replace(CASES["vit"], size=2, pixels=32, options=SMALL_VIT)
    method = case.method(rule)
    if planted:
        method.regularisation = lambda outputs, batch: {"planted": 0.0 * _peeked(outputs)}  # type: ignore[method-assign]
    watch, batch = Watch(), case.batch()
    trainer = {"precision": "32-true", "steps": LAST, "accumulate": 1, "clip": 1.0}
    spec = RunSpec("benchmark", "benchmark", 0, {"name": "benchmark"}, {}, {}, {}, {}, trainer)
    with tempfile.TemporaryDirectory() as folder:
        data = OneBatch(method.tasks, batch, LAST)
        build_trainer(spec, Path(folder), [watch], 1).fit(method, datamodule=data)
    found = watch.waits
    return {"ok": not found.places, "places": dict(found.places), "wanted": dict(found.wanted)}


def _peeked(outputs: Any) -> torch.Tensor:
    value = next(iter(outputs.predictions.values())).sum()
    return value * value.item()


def _trained(spec: Any, *, stop_at: int | None = None) -> dict[str, Any]:
    """Returns the weights of a toy run, which may be stopped in between, with deterministic algorithms."""
    from mtlbench.testing import trained

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if stop_at is not None:
                trained(spec, folder, stop_at=stop_at)
            found = trained(spec, folder)
    finally:
        torch.use_deterministic_algorithms(False)
    if found is None:
        raise RuntimeError("A run that nobody stops trains to its end. This one did not.")
    return found


def _on_host(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


# ---- 2: surgery -----------------------------------------------------------------------------------------------------


def surgery(run: Run) -> None:
    """Times steps of gradient rules over their floor, beside TorchJD and, where it imports, LibMTL."""
    from benchmarks import surgery as steps

    others = {"TorchJD": steps.torchjd} | ({"LibMTL": steps.libmtl} if steps.their_pcgrad() else {})
    pairs = 3 if run.small else 12
    for case in _cases(small=run.small):
        for name, way in (("pcgrad", "plain"), ("mgda", "plain"), ("mgda", "light")):
            if not (run.small and name == "pcgrad"):
                run.add("surgery", f"{case.title}, {name}, {way}", lambda c=case, n=name, w=way: _rule(c, n, w, pairs))
        for other, make in others.items():
            run.add("surgery", f"{case.title}, PCGrad by {other}", lambda c=case, m=make: _other(c, m, pairs))


def _cases(*, small: bool) -> list[Case]:
    if small:
        return [replace(CASES["vit"], size=2, pixels=32, options=SMALL_VIT, precision="bf16-mixed", title="small ViT")]
    made = []
    for title, encoder in (("ResNet-50", "resnet50"), ("ViT-B", "vit_base_patch16_224")):
        for pixels, tasks in ((448, named(*FIVE)), (224, depths(13))):
            text = f"{title}, {len(tasks)} tasks, {pixels} px, batch 8"
            made.append(Case(text, 8, pixels, tasks, encoder, {}, "bf16-mixed"))
    return made


def _rule(case: Case, name: str, way: str, pairs: int) -> dict[str, Any]:
    from benchmarks import surgery as steps

    method = case.method(name, surgery=way)
    bare = (steps.floor(method, case), steps.uniform(method, case))
    return _ratios(measure(method, case.batch(), *bare, blocks=pairs, precision=case.precision))


def _other(case: Case, make: Callable[[Any, Case], Callable[[], None]], pairs: int) -> dict[str, Any]:
    from benchmarks import surgery as steps

    method = case.method("uniform")
    theirs = make(method, case)
    try:
        theirs()
    except RuntimeError as error:  # TorchJD's batched pass fails on layer norms under autocast, on a CPU at least.
        return {"left out": f"{type(error).__name__}: {error}"[:300]}
    bare = (theirs, steps.floor(method, case), steps.uniform(method, case))
    found = measure(method, case.batch(), *bare, blocks=pairs, precision=case.precision)
    return _ratios([times[1:] for times in found])


def _ratios(found: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    return {
        "step / floor": statistics.median(step / least for step, least, _ in found),
        "step / uniform": statistics.median(step / plain for step, _, plain in found),
        "floor, ms": statistics.median(1000 * least for _, least, _ in found),
    }


# ---- 3: experts -----------------------------------------------------------------------------------------------------


def experts(run: Run) -> None:
    """Times sparse MLPs over dense ones of equal active FLOPs in bf16: E = 16, k = 4."""
    for tokens in (64,) if run.small else (4096, 16384, 65536):
        for backend in ("grouped", "segment", "padded"):
            for routes, zipf in (("balanced", 0.0), ("skewed", 1.0)):
                title = f"{tokens} tokens, {backend}, {routes}"
                run.add("experts", title, lambda t=tokens, b=backend, z=zipf: _sparse(run, t, b, z))


def _sparse(run: Run, tokens: int, backend: str, zipf: float) -> dict[str, Any]:
    from benchmarks.experts import Case as Sparse
    from benchmarks.experts import measure as timed

    width, pairs, warmup = (32, 3, 1) if run.small else (768, 15, 5)
    found = timed(Sparse(tokens, width, 16, zipf, torch.bfloat16), pairs, backend=backend, warmup=warmup)
    return {
        "sparse / dense": statistics.median(sparse / dense for sparse, dense in found),
        "dense, ms": statistics.median(1000 * dense for _, dense in found),
    }


# ---- 4: data --------------------------------------------------------------------------------------------------------


def data(run: Run) -> None:
    """Compares images per second from the cache, with transfer, with those of a training step, and of both at once."""
    run.add("data", "from the cache to the device, against a step", lambda: _pipeline(run))


def _pipeline(run: Run) -> dict[str, Any]:
    from lightning.fabric.utilities import move_data_to_device

    # Its import sets the number of threads for all processes that follow.
    with mock.patch.dict(os.environ):
        from benchmarks import data as pipeline

    pixels, images, batch, steps = (32, 4, 2, 3) if run.small else (448, 64, 16, 60)
    workers = 0 if run.small else max(1, min(16, (os.cpu_count() or 2) - 1))
    options, encoder = (SMALL_VIT, "vit_tiny_patch16_224") if run.small else ({}, "vit_base_patch16_224")
    case = Case("data", batch, pixels, dict(pipeline.Plain.TASKS), encoder, options, "bf16-mixed")
    method = case.method("uniform")
    network = method.network.to(DEVICE).train()
    optimiser = torch.optim.AdamW(network.parameters())

    def train(found: Any) -> None:
        optimiser.zero_grad()
        with case.autocast():
            total = torch.stack(losses_of(method, network, found)).sum()
        total.backward()
        optimiser.step()

    def rate(batches: Any, act: Callable[[Any], None]) -> float:
        act(next(batches))
        start = clock()
        for _ in range(steps):
            act(next(batches))
        return steps * batch / (clock() - start)

    with tempfile.TemporaryDirectory() as place, mock.patch.dict(os.environ, MTLBENCH_CACHE=place + "/cache"):
        ids = pipeline.write(Path(place), images, pixels)
        source = pipeline.ours(Path(place), ids, pixels, cached=True, recipe="invpt")
        source.workers, source.batch_size = workers, batch
        stream = (move_data_to_device(found, DEVICE) for found in iter(source.train_dataloader()))
        first = next(stream)
        loading = rate(stream, lambda _: None)
        computing = rate(iter(lambda: first, None), train)
        both = rate(stream, train)
        stream.close()
    waiting = max(0.0, 1 - both / computing)
    rates = {"loading, images/s": loading, "step, images/s": computing, "both, images/s": both}
    return {**rates, "waiting": waiting, "workers": workers}


# ---- 5: a bench -----------------------------------------------------------------------------------------------------


def bench(run: Run) -> None:
    """Runs a suite with the command that users run."""
    run.add("bench", "digits, 3 steps" if run.small else "scenes", lambda: _benched(run))


def _benched(run: Run) -> dict[str, Any]:
    suite = ["digits", "--methods", "uniform", "trainer.steps=3"] if run.small else ["scenes"]
    left = max(30.0, min(600.0, run.ends - time.monotonic()))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mtlbench.cli", "bench", *suite, "--results", folder]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        taken = time.monotonic() - start
        if done.returncode:
            return {"ok": False, "error": (done.stderr or done.stdout)[-500:]}
        found = ranking(Path(folder) / suite[0] / "leaderboard.csv")
    other = ranking(run.reference) if run.reference else None
    return {"ok": taken <= 180, "bench, s": taken, "ranking": found, "same as the reference": other and other == found}


def ranking(path: Path) -> list[str]:
    """Returns the labels of a leaderboard in its order."""
    with path.open(newline="") as file:
        return list(dict.fromkeys(row["label"] for row in csv.DictReader(file)))


# ---- command line ---------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Run], None]] = {
    "correct": correct, "surgery": surgery, "experts": experts, "data": data, "bench": bench,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--small", action="store_true", help="tiny networks, for a machine without a GPU")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the rows are written")
    parser.add_argument("--reference", type=Path, help="leaderboard.csv of the suite scenes on a CPU")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if DEVICE.type == "cpu" and not given.small:
        parser.error("torch finds no CUDA device. Run it on a machine with a GPU, or add --small.")
    run = Run(given.small, given.reference)
    about = {"device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu", "torch": torch.__version__}
    for part in given.parts or PARTS:
        print(part, flush=True)
        run.ends = float("inf") if given.small else time.monotonic() + SECONDS[part]
        PARTS[part](run)
        # Written after every part: the machine may be gone before the last one.
        given.json.write_text(json.dumps({**about, "rows": run.rows}, indent=1) + "\n")
    failed = [row["what"] for rows in run.rows.values() for row in rows if row.get("ok") is False]
    print(f"failed: {', '.join(failed)}" if failed else "All checks hold.")
    return int(bool(failed))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
