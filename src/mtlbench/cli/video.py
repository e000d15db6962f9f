"""``mtlbench video``: measure score and cost of computation sharing over the frames of clips."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mtlbench.cli.arguments import add_allow, add_results, add_suite, positive
from mtlbench.cli.stored import study_of
from mtlbench.errors import ExitCode, coloured_output
from mtlbench.runs.store import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite, the row, and what to vary."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument("--label", metavar="ROW", help="row to measure (default: the first row of computation_sharing)")
    parser.add_argument(
        "--seed", type=int, nargs="+", metavar="S", help="seeds of the runs (default: all seeds of the study)"
    )
    parser.add_argument(
        "--threshold", type=float, nargs="+", metavar="θ", help="thresholds to try (default: six values)"
    )
    parser.add_argument("--distance", type=positive, nargs="+", metavar="N", help="key-frame distances, in frames")
    parser.add_argument(
        "--blocks",
        type=int,
        help="number of blocks that share computation across tasks between key frames (default: half)",
    )
    parser.add_argument("--clips", type=positive, help="use only the first CLIPS clips (default: all)")
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure a finished row and write ``video-<label>.json`` and ``.html`` into the suite's results."""
    root, study = study_of(Path(arguments.results), arguments.suite)
    from mtlbench.report.figures import video as report
    from mtlbench.training import clip_sharing

    record = clip_sharing.measure_row(
        root,
        study,
        label=arguments.label,
        seeds=arguments.seed,
        thresholds=arguments.threshold,
        distances=arguments.distance,
        blocks=arguments.blocks,
        limit=arguments.clips,
        allow=arguments.allow,
        watch=lambda line: print(line, flush=True),
    )
    name = re.sub(r"[^\w.-]+", "-", record["label"])
    written = [root / f"video-{name}.{kind}" for kind in ("json", "html")]
    write_json(written[0], record)
    written[1].write_text(report.page(record), encoding="utf-8")
    _print(record)
    print("Written: " + ", ".join(map(str, written)))
    return ExitCode.DONE


def _print(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mtlbench.report import formatting
    from mtlbench.report.figures import video as report

    # Rows with sharing have no name, so that the table fits into 80 columns.
    table = Table("", "θ", "every", "Δm %", "95 %", "MFLOPs", "of dense", "drift", box=None, header_style="bold")
    whole = report.flops(record["points"][0])
    for point in record["points"]:
        gain, used = report.gain(point), report.flops(point)
        theta, distance = point["threshold"], str(point["distance"])
        shown = (escape(point["label"]), "", "") if theta is None else ("", f"{theta:g}", distance)
        table.add_row(
            *shown,
            formatting.number(gain.mean, 2, sign=True) if gain else formatting.BLANK,
            formatting.interval(gain),
            f"{used / 1e6:.1f}",
            f"{used / whole:.0%}",
            formatting.BLANK if theta is None else f"{report.drifts(point)[-1]:.3f}",
        )
    console = Console(file=coloured_output())
    about = (
        f"{record['label']}, {record['clips']} clips of {record['clip_length']} frames, seeds {record['seeds']}; base "
        f"task {record['base']}. every: frames from key frame to key frame; Δm against {record['baseline']}; "
        "MFLOPs per frame; drift: relative change of predictions in the last frame before a key frame"
    )
    console.print(escape(about))
    console.print(table)
