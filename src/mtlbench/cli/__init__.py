"""The command line. Exit codes: 0 all done, 1 some run failed, 2 the request is wrong, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlbench.errors import MtlbenchError

RESULTS = "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parse(argv)
    try:
        return arguments.run(arguments)
    except MtlbenchError as error:
        print(f"mtlbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished work is kept; the same command resumes.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = error.filename or "A file"
        print(
            f"mtlbench: Results must be writable. {where}: {error.strerror}. Free space or choose another folder with "
            "RESULTS= (--results).", file=sys.stderr,
        )  # fmt: skip
        return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; overrides may stand before, between and after options."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtlbench", description="Compare ways of training several tasks together: one command, one table."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    bench = _command(commands, "bench", _bench, "run what is missing of a suite and show the leaderboard")
    _suite_arguments(bench)
    bench.add_argument("--jobs", type=_positive, help="runs at once (default: one per core or accelerator)")
    bench.add_argument("--devices", type=_positive, default=1, help="devices per run; the effective batch is kept")
    bench.add_argument("--sample", action="store_true", help="render and use a small data set in the true layout")
    bench.add_argument("--retry", action="store_true", help="run failed runs again")
    bench.add_argument("--dry", action="store_true", help="print the plan and stop")

    run = _command(commands, "run", _run, "train one method of a suite in this process, one seed after another")
    _suite_arguments(run)
    run.add_argument("--method", required=True, metavar="NAME", help="method, as in the suite or module:Class")

    status = _command(commands, "status", _status, "tell the state of every run of a suite")
    _suite_name(status)
    status.add_argument("--results", default=RESULTS)

    report = _command(commands, "report", _report, "show the leaderboard; write Markdown, CSV, LaTeX, HTML")
    _suite_name(report)
    report.add_argument("--results", default=RESULTS)

    predict = _command(commands, "predict", _predict, "draw a finished run's predictions on your own images")
    predict.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    predict.add_argument("images", nargs="+", help="image files")
    predict.add_argument("--out", default="predictions", help="folder for the pictures (default: predictions)")

    extract = _command(commands, "extract", _extract, "take one task out of a run with experts, as a small network")
    extract.add_argument("run_folder", metavar="RUN", help="results/<suite>/<run_id>")
    extract.add_argument("--task", action="append", default=[], help="task to take out (default: a report on all)")
    extract.add_argument(
        "--threshold", type=float, help="share of a task's tokens that an expert must serve (default: a report on five)"
    )
    extract.add_argument("--out", metavar="DIR", help="folder for model.safetensors and model.json")
    extract.add_argument("--export", action="store_true", help="write program.pt2 too, which needs PyTorch alone")

    video = _command(commands, "video", _video, "measure computation sharing over the frames of clips")
    _suite_name(video)
    video.add_argument("--results", default=RESULTS)
    video.add_argument("--label", metavar="ROW", help="row to measure (default: the first of computation_sharing)")
    video.add_argument("--seed", type=int, nargs="+", metavar="S", help="seeds of the runs (default: all of the study)")
    video.add_argument("--threshold", type=float, nargs="+", metavar="θ", help="thresholds to try (default: six)")
    video.add_argument("--distance", type=_positive, nargs="+", metavar="N", help="frames between key frames")
    video.add_argument("--blocks", type=int, help="blocks in which tasks share between key frames (default: half)")
    video.add_argument("--clips", type=_positive, help="use the first clips only")

    _command(commands, "methods", _methods, "list methods, or show one with its hyper-parameters").add_argument(
        "name", nargs="?"
    )
    _command(commands, "suites", _suites, "list suites")
    check = _command(commands, "check", _check, "run the contract tests on a method or data module: my_pkg:MyMethod")
    check.add_argument("target", help="a name, or module:Class")

    data = _command(commands, "data", _data, "tell which data a suite needs, where it looks, and what is missing")
    _suite_name(data)
    data.add_argument("--data", metavar="FOLDER")
    data.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    data.add_argument("--verify", action="store_true", help="read every file that a split names; count missing labels")
    data.add_argument("--download", action="store_true", help="fetch and unpack what has a public address; resumes")
    data.add_argument("--agree", action="store_true", help="agree to the terms of the data, which --download shows")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, run: object, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _suite_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("suite", help="name of a suite in experiments/, or a path to a YAML file")


def _suite_arguments(command: argparse.ArgumentParser) -> None:
    _suite_name(command)
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. model.encoder=resnet18")
    command.add_argument("--methods", metavar="NAMES", help="only these methods, separated by spaces")
    command.add_argument("--seeds", metavar="N", help="number of seeds, or a list such as '0,1,5'")
    command.add_argument("--data", metavar="FOLDER", help="folder of the data")
    command.add_argument("--results", default=RESULTS, metavar="FOLDER", help="where results go (default: results)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def _bench(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import bench

    return bench.run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import run

    return run.run(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import inspect

    return inspect.status(Path(arguments.results), arguments.suite)


def _report(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import inspect

    return inspect.report(Path(arguments.results), arguments.suite)


def _methods(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import inspect

    return inspect.methods(arguments.name)


def _suites(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import inspect

    return inspect.list_suites()


def _predict(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import predict

    return predict.run(Path(arguments.run_folder), [Path(p) for p in arguments.images], Path(arguments.out))


def _extract(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import extract

    out = Path(arguments.out) if arguments.out else None
    return extract.run(Path(arguments.run_folder), arguments.task, arguments.threshold, out, program=arguments.export)


def _video(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import video

    return video.run(
        Path(arguments.results), arguments.suite, label=arguments.label, seeds=arguments.seed,
        thresholds=arguments.threshold, distances=arguments.distance, blocks=arguments.blocks, limit=arguments.clips,
    )  # fmt: skip


def _check(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import check

    return check.run(arguments.target)


def _data(arguments: argparse.Namespace) -> int:
    from mtlbench.cli import data

    return data.run(
        arguments.suite, arguments.data, arguments.set, verify=arguments.verify, download=arguments.download,
        agree=arguments.agree,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
