"""The command line: one file per subcommand, each with ``add_arguments(parser)`` and ``run(arguments)``.

A subcommand is added with one line in `COMMANDS` and one file of the same name. Only the file of the chosen
subcommand is imported, and none of these files imports torch before its ``run`` is called.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtlbench import __version__
from mtlbench.cli import buckets
from mtlbench.cli.output import reader_left, silence
from mtlbench.errors import ExitCode, MtlbenchError, inert_output, shortened
from mtlbench.runs.bucket import is_url

COMMANDS = {
    "init": "write a small working project: suite, data module, method, test",
    "bench": "train the missing runs of a suite and show the leaderboard",
    "run": "train one method of a suite in this process, seed by seed",
    "status": "show the state of every run of a suite",
    "report": "show the leaderboard and write it as Markdown, CSV, LaTeX and HTML",
    "dashboard": "save the comparison of a study as a workspace in W&B",
    "sync": "send to W&B the runs of a study that were logged offline",
    "serve": "show the report in a browser on this machine while a bench runs",
    "compare": "rank methods over several studies",
    "cost": "measure what methods cost relative to a reference method, by alternating both in one process",
    "predict": "write a finished run's predictions for your own images or other inputs",
    "extract": "extract one task, as a small network, from a run with experts or of disparse",
    "routing": "route an unseen task by its description, beside the tasks of a run with experts",
    "export": "write a finished run's network as a folder to share, with a model card; upload it on request",
    "video": "measure computation sharing over the frames of clips",
    "methods": "list methods, or show one with its hyper-parameters",
    "suites": "list suites",
    "check": "run the contract tests on a method or data module, e.g. my_pkg:MyMethod",
    "data": "show which files a suite needs, where they are expected, and which are missing",
}
"""Every subcommand with its one line of help; its code is ``cli/<name>.py``."""


_WRITABLE = ("Results must be writable.", "Free space or choose another folder with RESULTS= (--results).")
_USABLE = ("The name of a file or folder must be one that the file system can hold.", "Give another name.")
_RULES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), _WRITABLE),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), _USABLE),
}
"""Rule and remedy of errors of the operating system that the user can mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code, see `mtlbench.errors.ExitCode`."""
    with inert_output():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    try:
        Path(getattr(arguments, "results", "")).exists()  # Raises where the file system cannot hold such a name.
        if is_url(getattr(arguments, "results", "")):
            buckets.attach(arguments)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except MtlbenchError as error:
        print(f"mtlbench: {error}", file=sys.stderr)
        return ExitCode.REFUSED
    except KeyboardInterrupt:
        print("\nInterrupted. Finished work is kept; the same command resumes.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        if not reader_left(error):
            raise
        silence()
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        rule, remedy = _RULES.get(error.errno or 0, ("", ""))
        if not rule:
            return _unexpected()
        where = shortened(str(error.filename or "A file"))
        print(f"mtlbench: {rule} {where}: {error.strerror}. {remedy}", file=sys.stderr)
        return ExitCode.REFUSED
    except Exception:
        return _unexpected()


def _unexpected() -> int:
    """Print the traceback of a fault in mtlbench itself; Python would print it raw."""
    traceback.print_exc()
    print(
        "mtlbench: This is a fault of mtlbench or of code that it called. Finished work is kept. Please report it with "
        "the lines above.",
        file=sys.stderr,
    )
    return ExitCode.FAILED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; overrides may stand before, between and after options."""
    parser = _parser([name for name in COMMANDS if name in argv])
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(text.startswith("-") for text in rest)):
        hint = ""
        if "overrides" not in arguments and any("=" in text for text in rest):
            hint = ". This command only reads finished work. Pass changes to the suite to mtlbench bench"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser(loaded: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Returns the parser of all subcommands; those in ``loaded`` know their arguments."""
    parser = argparse.ArgumentParser(
        prog="mtlbench",
        description="Compare multi-task learning methods on your data: one command, one leaderboard.",
        epilog=f"Exit codes: {ExitCode.described()}",
    )
    parser.add_argument("--version", action="version", version=f"mtlbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in loaded:
            module = importlib.import_module(f"mtlbench.cli.{name}")
            command.epilog = getattr(module, "EPILOG", None)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
