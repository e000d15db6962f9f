"""``mtlbench routing``: the routing of an unseen task by its description, beside that of the tasks of a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.cli.arguments import add_allow
from mtlbench.errors import DataError, ExitCode, MethodError, coloured_output
from mtlbench.runs.store import finished_run

if TYPE_CHECKING:
    from mtlbench.runs.spec import RunSpec
    from mtlbench.training.routing_report import Routed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds run, task, description and samples."""
    parser.add_argument(
        "run_folder", metavar="RUN", help="results/<suite>/<run_id>, of a method with gate: description"
    )
    parser.add_argument(
        "--task", help="name of the new task (default: each that the run describes and was not trained on)"
    )
    parser.add_argument("--description", metavar="TEXT", help="what the new task is, if the run does not say it")
    parser.add_argument("--data", metavar="FOLDER", help="data folder, if it has moved since the run")
    parser.add_argument(
        "--file", metavar="FILE", help="samples to route, as for predict (default: the run's validation split)"
    )
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints how far the new task's routing is from that of every task of the run, before any training on it.

    Raises:
        MethodError: The run has another gate, was trained on the task, or nobody described it.
        DataError: There is no such file.
    """
    spec, _ = finished_run(Path(arguments.run_folder))  # Refused before torch is imported.
    if arguments.file and not os.path.isfile(arguments.file):
        raise DataError(f"An input must be a file. There is no {arguments.file}.")
    described = _described(spec, arguments.task, arguments.description)
    from mtlbench.networks.sentences import described as vectors
    from mtlbench.training.load import load_run
    from mtlbench.training.routing_report import routing

    loaded = load_run(arguments.run_folder, data=arguments.data, allow=arguments.allow)
    found = vectors(described, spec.method["arguments"].get("describer", "minilm")) or {}
    split = "val" if "val" in loaded.data.SPLITS else loaded.data.SPLITS[-1]
    samples = loaded.data.read(Path(arguments.file)) if arguments.file else loaded.data.samples(split)
    for task, vector in found.items():
        _print(task, routing(loaded, vector, samples), arguments.file or f"the split {split}")
    return ExitCode.DONE


def _described(spec: RunSpec, task: str | None, text: str | None) -> dict[str, Any]:
    """Returns the description of every new task."""
    known = spec.method["arguments"].get("descriptions") or {}
    names = [task] if task else [name for name in known if name not in spec.tasks]
    if task in spec.tasks:
        raise MethodError(
            f"A new task is one that the run was not trained on. {task} is one of its tasks {', '.join(spec.tasks)}. "
            "Give another name."
        )
    found = {task: text} if task and text else {name: known[name] for name in names if name in known}
    if not found or (text and not task):
        raise MethodError(
            f"A new task is routed by its description. The run has none of {task or 'a task that it has not seen'}. "
            "Give --task NAME --description TEXT."
        )
    return found


def _print(task: str, found: Routed, where: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mtlbench.training.routing_report import NEW

    console = Console(file=coloured_output())
    console.print(escape(f"Routing of {task} before training, on {found.samples} samples of {where}."))
    near = Table("task", "total variation", "cosine", box=None)
    for one in found.neighbours:
        near.add_row(escape(one.task), f"{one.distance:.3f}", f"{one.cosine:.3f}")
    console.print(near)
    shares = Table("layer", "task", "share of every expert", box=None)
    for layer, table in found.shares.items():
        for name, label in ((NEW, f"{task} (new)"), (found.neighbours[0].task, found.neighbours[0].task)):
            shares.add_row(escape(layer), escape(label), " ".join(f"{share:.2f}" for share in table[name]))
    console.print(shares)
