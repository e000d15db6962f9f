"""``mtlbench extract``: extract one task as a separate network, and report its cost and score."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.cli.arguments import add_allow
from mtlbench.cli.stored import needs_images
from mtlbench.errors import ExitCode, MethodError, coloured_output
from mtlbench.runs.store import finished_run
from mtlbench.tracking.base import EXTRACT, About, Ending
from mtlbench.tracking.tracker import Tracker
from mtlbench.tracking.wandb_client import wandb_mode

if TYPE_CHECKING:
    from mtlbench.training.extraction_report import Measured
    from mtlbench.training.load import LoadedRun

_NEEDED = (
    "Writing a network needs one task and, for a network with experts, one threshold. Give --task and --threshold with "
    "--out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds run, tasks, threshold and output."""
    parser.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    parser.add_argument("--task", action="append", default=[], help="task to extract (default: report on all tasks)")
    parser.add_argument(
        "--threshold", type=float, help="share of a task's tokens that an expert must serve (default: five thresholds)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for model.safetensors and model.json")
    parser.add_argument("--export", action="store_true", help="also write program.pt2, which needs only PyTorch")
    parser.add_argument("--track", action="store_true", help="also keep the network as an artifact in W&B (WANDB_MODE)")
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the report over thresholds; with ``--out``, writes one task's network at one threshold.

    Raises:
        MethodError: The options do not fit together, or see `mtlbench.training.extraction_report.measure`.
    """
    if arguments.out and len(arguments.task) != 1:
        raise MethodError(_NEEDED)
    if arguments.export and not arguments.out:
        raise MethodError("An exported program is written beside an extracted network. Give --out with --export.")
    if arguments.track and not arguments.out:
        raise MethodError("An artifact holds an extracted network. Give --out with --track.")
    if arguments.track and wandb_mode() == "disabled":
        raise MethodError("--track logs to W&B, which is off. Set WANDB_MODE to online or offline.")
    spec, _ = finished_run(Path(arguments.run_folder))  # Refused before torch is imported, as are programs.
    if arguments.export:
        needs_images(spec, "An exported program")
    from mtlbench.networks.experts.extracted import export
    from mtlbench.networks.pruning import PrunedNetwork
    from mtlbench.training import extraction_report as extraction
    from mtlbench.training.load import load_run

    loaded = load_run(arguments.run_folder, allow=arguments.allow)
    if isinstance(loaded.method.network, PrunedNetwork):
        needs_images(spec, "Extraction from a pruned network")
        return _pruned(arguments, loaded)
    network = extraction.expert_network(loaded)
    if arguments.out and arguments.threshold is None:
        raise MethodError(_NEEDED)
    wanted = list(dict.fromkeys(arguments.task or loaded.method.tasks))
    thresholds = extraction.THRESHOLDS if arguments.threshold is None else (arguments.threshold,)
    rows = [row for task in wanted for row in extraction.measure(loaded, network, task, thresholds)]
    _print(rows)
    if arguments.out:
        out = Path(arguments.out)
        extraction.write(loaded, network, rows[-1], out)
        print(f"Wrote {out}/model.safetensors and model.json. In Python: mtlbench.load_extracted({str(out)!r})")
        if arguments.track:
            _track(Path(arguments.run_folder), rows[-1], out)
        if arguments.export:
            print(f"Wrote {export(out)}. In Python: torch.export.load({str(out / 'program.pt2')!r}).module()")
    return ExitCode.DONE


def _pruned(arguments: argparse.Namespace, loaded: LoadedRun) -> int:
    """Reports on a pruned network, task by task; with ``--out``, writes the network of one task without its zeros."""
    from mtlbench.networks.experts.extracted import export
    from mtlbench.training import pruned_report

    if arguments.threshold is not None or arguments.track:
        raise MethodError(
            "--threshold and --track are for networks with experts. This run's network is pruned. Drop these options."
        )
    for task in dict.fromkeys(arguments.task or loaded.method.tasks):
        row = pruned_report.measure(loaded, task)
        print(
            f"{task}: {row.kept:,} of {row.weights:,} weights ({row.kept / row.weights:.1%}), "
            f"{row.stored / 1e6:.3f} of {row.dense / 1e6:.3f} MB, "
            f"{row.flops / 1e6:.2f} of {row.dense_flops / 1e6:.2f} MFLOPs in pruned layers, "
            f"{row.protocol} {row.score:.4g}"
        )
    if arguments.out:
        out = Path(arguments.out)
        pruned_report.write(loaded, row, out)
        print(f"Wrote {out}/model.safetensors and model.json. In Python: mtlbench.load_extracted({str(out)!r})")
        if arguments.export:
            print(f"Wrote {export(out)}. In Python: torch.export.load({str(out / 'program.pt2')!r}).module()")
    return ExitCode.DONE


def _track(folder: Path, row: Measured, out: Path) -> None:
    """Keep an extracted network as an artifact, in a W&B run of its own beside those of the study."""
    place = folder.resolve()
    name = f"{place.name}-{row.task}-{row.threshold:g}"
    values = {"extract/score": row.score, "extract/parameters": row.parameters, "extract/experts": row.experts}
    config = {"run": place.name, "task": row.task, "threshold": row.threshold}
    tracker = Tracker(About(name, name, place.parent.name, EXTRACT, "(extracted)", config), place.parent, others=())
    tracker.finish(Ending(values, files={name: [out / "model.safetensors", out / "model.json"]}))


def _print(rows: Sequence[Measured]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for whole in (row for row in rows if row.threshold is None):
        # Short heads: the table must fit into 80 columns.
        table = Table("θ", "experts", "params", "", "MFLOPs", "ms", escape(whole.protocol), "", "off route", box=None)
        for row in (r for r in rows if r.task == whole.task):
            table.add_row(
                "whole" if row.threshold is None else f"{row.threshold:g}",
                str(row.experts),
                f"{row.parameters:,}",
                f"{row.parameters / whole.parameters:.0%}",
                f"{row.flops / 1e6:.1f}",
                f"{row.milliseconds:.1f}",
                f"{row.score:.4g}",
                f"{row.score / whole.score:.1%}" if whole.score else "-",
                "" if row.off_route is None else f"{row.off_route:.2%}",
            )
        console = Console(file=coloured_output())
        console.print(
            f"{escape(whole.task)}: θ threshold; one image, active FLOPs; "
            "off route: tokens whose experts are not all kept"
        )
        console.print(table)
