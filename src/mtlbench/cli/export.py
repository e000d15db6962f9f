"""``mtlbench export``: a finished run's network as a folder to share, with programs, a card and, on request, upload."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlbench.cli.arguments import add_allow
from mtlbench.cli.stored import needs_images
from mtlbench.errors import ExitCode, MethodError, StoreError
from mtlbench.runs.store import finished_run, read_json, write_text

if TYPE_CHECKING:
    from torch import nn

    from mtlbench.training.load import LoadedRun

CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds run, folder, what to extract, and where to upload."""
    parser.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="output folder: new, empty, or one written by an earlier export"
    )
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx (needs the extra onnx)")
    parser.add_argument("--weights-only", action="store_true", help="write no program, only weights and model card")
    parser.add_argument("--task", help="export only this task and its experts; for runs with experts")
    parser.add_argument(
        "--threshold", type=float, help="with --task: share of its tokens that an expert must serve (default: 0.01)"
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the exported files to this repository on the Hugging Face Hub"
    )
    add_allow(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder, checks every program against the network, and uploads only if asked.

    Raises:
        StoreError: If the run is absent or not finished, the folder holds something else, or the upload fails.
        MethodError: If options do not fit together, a package is absent, or a program differs from the network.
    """
    out = Path(arguments.to)
    # All that can be refused is refused before torch is imported.
    needs_images(finished_run(Path(arguments.run_folder))[0], "Export")
    _check(arguments, out)
    from mtlbench.networks import programs
    from mtlbench.networks.experts.extracted import DESCRIPTION, WEIGHTS
    from mtlbench.training.load import load_run

    if arguments.onnx:
        programs.needs_onnx()
    loaded = load_run(arguments.run_folder, allow=arguments.allow)
    extract = arguments.task is not None
    network, about = (_extracted if extract else _whole)(loaded, arguments, out)
    files = [WEIGHTS, DESCRIPTION]
    for left in (programs.PROGRAM, programs.ONNX):
        (out / left).unlink(missing_ok=True)  # Of an earlier export, perhaps of another run.
    size, names = loaded.spec.model["image_size"], [f"prediction.{name}" for name in about["outputs"]]
    differences = {}
    if not arguments.weights_only:
        differences[programs.PROGRAM] = programs.write_program(network, size, out / programs.PROGRAM)
    if arguments.onnx:
        differences[programs.ONNX] = programs.write_onnx(network, size, out / programs.ONNX, names)
    files += differences
    _write_card(loaded, out, about, files)
    print(f"Wrote {out}: {', '.join([*files, CARD])}")
    for name, difference in differences.items():
        print(f"{name} predicts what the network predicts: largest relative difference {difference:.1e}")
    if arguments.push:
        from mtlbench.training.hub import push

        print(f"Uploaded to {push(out, arguments.push, [*files, CARD])}")
    return ExitCode.DONE


def _check(arguments: argparse.Namespace, out: Path) -> None:
    """Refuses options that do not fit together, and a folder whose files are not those of an export."""
    if arguments.threshold is not None and arguments.task is None:
        raise MethodError("A threshold chooses the experts of one task. Give --task with --threshold.")
    if arguments.onnx and arguments.weights_only:
        raise MethodError("An ONNX file is a program, and --weights-only writes none. Leave out one of the two.")
    if out.exists() and not out.is_dir():
        raise StoreError(f"--to names a folder. {out} is a file. Name another.")
    if out.is_dir() and any(out.iterdir()) and not (read_json(out / "model.json") or {}).get("format"):
        raise StoreError(
            f"--to names a new or empty folder, or one of an earlier export. {out} holds other files. Name another."
        )
    if arguments.push:
        from mtlbench.training.hub import check_hub

        check_hub(arguments.push)


def _whole(loaded: LoadedRun, arguments: argparse.Namespace, out: Path) -> tuple[nn.Module, dict[str, Any]]:
    from mtlbench.training import exported

    network = exported.save(loaded, out)
    return network, {"outputs": network.description["outputs"]}


def _extracted(loaded: LoadedRun, arguments: argparse.Namespace, out: Path) -> tuple[nn.Module, dict[str, Any]]:
    from mtlbench.networks.experts.extracted import load_extracted
    from mtlbench.training import extraction_report as extraction

    whole = extraction.expert_network(loaded)
    threshold = 0.01 if arguments.threshold is None else arguments.threshold
    row = list(extraction.measure(loaded, whole, arguments.task, (threshold,)))[-1]
    extraction.write(loaded, whole, row, out)
    network = load_extracted(out)
    keys = ("kind", "dense", "channels", "class_names")
    outputs = {arguments.task: {key: network.description[key] for key in keys}}
    return network, {"outputs": outputs, "extracted": network.description["source"]}


def _write_card(loaded: LoadedRun, out: Path, about: Mapping[str, Any], files: list[str]) -> None:
    from mtlbench.errors import inert
    from mtlbench.report.card import card

    spec, result = inert(loaded.spec.to_json()), inert(loaded.result)
    write_text(out / CARD, card(spec, result, about["outputs"], files, about.get("extracted")))
