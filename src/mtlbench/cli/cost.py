"""``mtlbench cost``: what methods cost relative to one of them, measured in turns in one process."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mtlbench.cli.arguments import add_methods, add_request, positive, read_request, results_folder
from mtlbench.errors import ExitCode, MethodError, coloured_output
from mtlbench.runs.spec import RunSpec
from mtlbench.study import costs
from mtlbench.study import resolve as studies

EPILOG = (
    "Blocks of steps of a method and of the reference (trainer.budget.of, uniform by default) take turns in one "
    "process, without diagnostics, so that drift in the machine's speed cancels out. Run it on an idle machine. "
    "Rows that have been measured are not measured again, because a suite with trainer.budget.unit=seconds derives its "
    "steps from their measurements."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite with its changes, and how to measure."""
    add_request(parser)
    add_methods(parser)
    parser.add_argument("--pairs", type=positive, default=10, help="pairs of blocks per method (default: 10)")
    parser.add_argument("--steps", type=positive, default=5, help="steps per block (default: 5)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads to use (default: 1)")
    parser.add_argument("--again", action="store_true", help="also measure rows that have been measured before")
    parser.add_argument("--json", action="store_true", help="print the entries as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing, store it beside the study, and print it."""
    asked = read_request(arguments)
    root = results_folder(arguments.results, asked.suite)
    from mtlbench.cli.progress import print_doubts
    from mtlbench.training.malloc import keep_freed_memory

    keep_freed_memory()
    asked.suite.trainer.budget.unit = "steps"  # Costs are those of the suite's own steps.
    study = studies.resolve(asked.suite, asked.local, asked.overrides, asked.place)
    print_doubts(study)
    specs = study.specs
    reference = costs.reference_of(specs, asked.suite.trainer.budget.of)
    known = costs.read(root)
    shown: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    for label in dict.fromkeys(spec.label for spec in specs):
        spec = next(spec for spec in specs if spec.label == label)
        entry = known.get(label)
        if not arguments.again and entry and entry.get("key") == costs.key_of(spec, reference):
            shown[label] = entry
            continue
        _say(f"{label}: measuring", arguments)
        try:
            shown[label] = _measured(spec, reference, arguments)
        except MethodError as error:
            skipped.append(str(error))
            continue
        costs.store(root, asked.suite.name, {label: shown[label]})
    if arguments.json:
        print(json.dumps(shown, indent=1))
    else:
        _print_table(list(shown.values()), root)
    for text in skipped:
        print(f"Not measured: {text}", file=sys.stderr)
    return ExitCode.DONE if shown else ExitCode.REFUSED


def _say(text: str, arguments: argparse.Namespace) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _measured(spec: RunSpec, reference: RunSpec, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the entry of one row."""
    import torch

    from mtlbench.training.cost import BEFORE, prediction_cost
    from mtlbench.training.pace import Paced, pairs, phase_flops, training_flops

    every, serving = costs.runs_of(spec)
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(arguments.threads)
    peak = _peak(every, arguments.threads)
    flops, phases = training_flops(reference), [phase_flops(run) for run in every]
    own = sum(map(training_flops, every, phases))
    steps = (arguments.pairs + 1) * arguments.steps
    with ExitStack() as stack:
        theirs = [stack.enter_context(Paced(reference, steps))]
        ours = [stack.enter_context(Paced(run, steps)) for run in every]
        found = pairs(ours, theirs, arguments.pairs, arguments.steps)
        predictions = {run.run_id: prediction_cost(p.method) for run, p in zip(every, ours, strict=True)}
    served = [run in serving for run in every]
    blocks = [([s for s, mine in zip(a, served, strict=True) if mine], a, b) for a, b in found]
    seconds = [sum(mine) / arguments.steps for mine, _, _ in blocks]
    predicted = [predictions[run.run_id] for run in serving]
    tasks = len(spec.tasks)
    return {
        "label": spec.label,
        "method": spec.method["name"],
        "key": costs.key_of(spec, reference),
        "reference": reference.label,
        "runs": len(serving),
        "seconds_per_step": sum(seconds) / len(seconds),
        **_ratio([sum(mine) / sum(b) for mine, _, b in blocks]),
        "seconds_ratio": _ratio([sum(a) / sum(b) for _, a, b in blocks])["ratio"],
        "training_flops": own,
        "flops_ratio": own / flops,
        "prepares": any(BEFORE in found for found in phases),
        "parameters": sum(cost["parameters"] for cost in predicted),
        "parameters_active": _mean_per_task(predicted, "parameters_active", tasks),
        "flops_alone": _mean_per_task(predicted, "flops_alone", tasks),
        "flops": sum(cost["flops"] for cost in predicted),
        "peak_memory_gib": peak,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def _mean_per_task(predicted: Sequence[dict[str, Any]], key: str, tasks: int) -> float:
    return sum(value for cost in predicted for value in cost[key].values()) / tasks


def _ratio(values: Sequence[float]) -> dict[str, Any]:
    """Return the geometric mean of ratios with its 95 % t interval."""
    from mtlbench.report.statistics import estimate

    found = estimate(map(math.log, values))
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return {"ratio": math.exp(found.mean), "low": low, "high": high, "pairs": found.n}


def _peak(runs: Sequence[RunSpec], threads: int) -> float:
    """Return the peak memory of the largest run, in a process that is forked as the bench forks runs."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from mtlbench.training.pace import peak_of

    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtlbench.training.worker", "mtlbench.training.pace"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_of, [run.to_json() for run in runs], threads).result()


def _print_table(rows: Sequence[dict[str, Any]], root: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mtlbench.report import formatting

    table = Table(box=None, pad_edge=False)
    for head in ("method", "time ×", "95 % interval", "s/step", "FLOPs ×", "params", "active", "GiB"):
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in rows:
        interval = "–" if row["low"] is None else f"[{row['low']:.2f}, {row['high']:.2f}]"
        table.add_row(
            escape(row["label"]),
            f"{row['ratio']:.2f}",
            interval,
            formatting.seconds(row["seconds_per_step"]),
            f"{row['flops_ratio']:.2f}",
            formatting.count(row["parameters"]),
            formatting.count(row["parameters_active"]),
            formatting.memory(row["peak_memory_gib"]),
        )
    Console(file=coloured_output()).print(table)
    if rows:
        device = f"{rows[0]['device']}, {rows[0]['threads']} thread(s)"
        print(
            f"time ×: seconds per step relative to {rows[0]['reference']}, mean over {rows[0]['pairs']} pairs "
            f"of blocks in turns, without diagnostics. FLOPs ×: of all training. On {device}."
        )
    print(f"Stored: {root / costs.FILE}")
