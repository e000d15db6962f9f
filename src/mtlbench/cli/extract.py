"""``mtlbench extract``: one task as a network of its own, and what that costs and keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.errors import MethodError

if TYPE_CHECKING:
    from mtlbench.networks.experts.network import ExpertNetwork
    from mtlbench.training.load import LoadedRun

THRESHOLDS = (0.0, 0.01, 0.1, 0.3, 0.5)
"""Shares of a task's tokens that the report tries."""


@dataclass(frozen=True)
class Measured:
    """One network on one task's test split.

    Attributes:
        task, threshold: What was taken out; threshold None for the whole network.
        experts: Experts kept, over all layers.
        parameters: Number of parameters.
        flops: Of one image in one forward pass, active ones.
        milliseconds: Median time of one image.
        score: The task's first score.
        protocol: Its id.
        off_route: Share of tokens whose route in the whole network leaves the kept experts; None for the whole one.
    """

    task: str
    threshold: float | None
    experts: int
    parameters: int
    flops: int
    milliseconds: float
    score: float
    protocol: str
    off_route: float | None


def run(
    run_folder: Path, tasks: Sequence[str], threshold: float | None, out: Path | None, *, program: bool = False
) -> int:
    """Prints the report over thresholds; with ``out``, writes one task's network at one threshold.

    Args:
        run_folder: Of a finished run with experts.
        tasks: Names; none for all.
        threshold: See `mtlbench.networks.experts.extraction.surviving`; None for `THRESHOLDS`.
        out: Folder to write to, or None.
        program: Whether to write an exported program too.

    Raises:
        MethodError: The request does not fit together, or see `measure`.
    """
    from mtlbench.training.load import load_run

    if out is not None and (len(tasks) != 1 or threshold is None):
        raise MethodError("Writing a network needs one task and one threshold. Give --task and --threshold with --out.")
    if program and out is None:
        raise MethodError("An exported program is written beside an extracted network. Give --out with --export.")
    loaded = load_run(run_folder)
    network = _sparse(loaded, run_folder)
    wanted = list(dict.fromkeys(tasks or loaded.method.tasks))
    thresholds = THRESHOLDS if threshold is None else (threshold,)
    rows = [row for task in wanted for row in measure(loaded, network, task, thresholds)]
    _print(rows)
    if out is not None:
        _write(loaded, network, wanted[0], float(thresholds[0]), out, rows[-1], program)
    return 0


def measure(loaded: LoadedRun, network: ExpertNetwork, task: str, thresholds: Sequence[float]) -> Iterator[Measured]:
    """Yields the whole network's row, then one per threshold.

    Raises:
        MethodError: The task is unknown or a threshold outside [0, 1).
    """
    from mtlbench.networks.experts.extraction import extract, kept_experts

    names = list(loaded.method.tasks)
    all_kept = [kept_experts(network, names, task, threshold) for threshold in thresholds]
    yield _row(
        loaded, network, task, None, {name: range(layer.experts.experts) for name, layer in network.layers.items()}
    )
    for threshold, kept in zip(thresholds, all_kept, strict=True):
        alone = extract(network, task, kept)
        yield _row(loaded, alone, task, threshold, kept, _off_route(loaded, network, task, kept))


def _sparse(loaded: LoadedRun, folder: Path) -> ExpertNetwork:
    from mtlbench.networks.experts.network import ExpertNetwork

    network: Any = loaded.method.network
    if not isinstance(network, ExpertNetwork):
        raise MethodError(
            f"Extraction takes experts out of a network that has them. {folder} was trained by "
            f"{loaded.result['method']!r}. Give a run of mod_squad, task_moe, m3vit or moe."
        )
    return network.eval()


def _row(
    loaded: LoadedRun, network: ExpertNetwork, task: str, threshold: float | None, kept: Any, off: float | None = None
) -> Measured:
    from mtlbench.networks.flops import forward_flops

    protocol, score = next(iter(_score(loaded, network, task).items()))
    height, width = loaded.spec.model["image_size"]
    import torch

    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    return Measured(
        task, threshold, sum(len(list(experts)) for experts in kept.values()),
        sum(p.numel() for p in network.parameters()), forward_flops(network, image, [task]),
        _milliseconds(network, image, task), score, protocol, off,
    )  # fmt: skip


def _batches(loaded: LoadedRun, task: str) -> Iterator[tuple[Any, Any]]:
    from mtlbench.data.contract import streams

    for batch in loaded.data.eval_dataloader(loaded.data.SPLITS[-1]):
        for stream in streams(batch):
            if task in stream["targets"]:
                yield stream["image"], stream["targets"][task]


def _score(loaded: LoadedRun, network: ExpertNetwork, task: str) -> dict[str, float]:
    import torch

    metric: Any = loaded.method.tasks[task].metric()
    with torch.inference_mode():
        for image, target in _batches(loaded, task):
            metric.update(network(image, [task]).predictions[task].float(), target)
    return {key: float(value) for key, value in metric.compute().items()}


def _off_route(loaded: LoadedRun, network: ExpertNetwork, task: str, kept: Any) -> float:
    import torch

    from mtlbench.networks.experts.extraction import outside, routes

    found = []
    with torch.inference_mode(), routes(network) as chosen:
        for image, _ in _batches(loaded, task):
            network(image, [task])
            found.append(outside(chosen, kept, len(image)).float().mean(1))
    return float(torch.cat(found).mean())


def _milliseconds(network: ExpertNetwork, image: Any, task: str) -> float:
    import torch

    times = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            network(image, [task])
            times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]


def _print(rows: Sequence[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    for whole in (row for row in rows if row.threshold is None):
        # Short heads: the table must fit into 80 columns.
        table = Table("θ", "experts", "params", "", "MFLOPs", "ms", whole.protocol, "", "off route", box=None)
        for row in (r for r in rows if r.task == whole.task):
            table.add_row(
                "whole" if row.threshold is None else f"{row.threshold:g}", str(row.experts), f"{row.parameters:,}",
                f"{row.parameters / whole.parameters:.0%}", f"{row.flops / 1e6:.1f}", f"{row.milliseconds:.1f}",
                f"{row.score:.4g}", f"{row.score / whole.score:.1%}" if whole.score else "-",
                "" if row.off_route is None else f"{row.off_route:.2%}",
            )  # fmt: skip
        console = Console()
        console.print(
            f"{whole.task}: θ threshold; one image, active FLOPs; off route: tokens whose experts are not all kept"
        )
        console.print(table)


def _write(
    loaded: LoadedRun, network: ExpertNetwork, task: str, threshold: float, out: Path, row: Measured, program: bool
) -> None:
    from mtlbench.networks.experts.extracted import describe, export, save
    from mtlbench.networks.experts.extraction import extract, kept_experts

    method: Any = loaded.method
    kept = kept_experts(network, list(method.tasks), task, threshold)
    source = {
        "run_id": loaded.result["run_id"], "hash": loaded.spec.hash, "threshold": threshold,
        "score": {row.protocol: row.score}, "off_route": row.off_route,
    }  # fmt: skip
    save(
        extract(network, task, kept), describe(method.tasks[task], loaded.spec.model, method.options, kept, source), out
    )
    print(f"Wrote {out}/model.safetensors and model.json. In Python: mtlbench.load_extracted({str(out)!r})")
    if program:
        print(f"Wrote {export(out)}. In Python: torch.export.load({str(out / 'program.pt2')!r}).module()")
