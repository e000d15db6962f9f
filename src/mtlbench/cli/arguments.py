"""Arguments shared by several commands: suite, overrides, methods, seeds, folders."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from mtlbench import suite as suites
from mtlbench.errors import StoreError, SuiteError
from mtlbench.runs.store import temporary
from mtlbench.study.resolve import Local
from mtlbench.study.validation import Place
from mtlbench.suite import Suite

RESULTS = "results"


def add_suite(parser: argparse.ArgumentParser) -> None:
    """Adds the name or path of a suite."""
    parser.add_argument("suite", help="name of a suite in experiments/, or a path to a YAML file")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of all results."""
    parser.add_argument(
        "--results", default=RESULTS, metavar="FOLDER", help="results folder (default: results), or the URL of a bucket"
    )


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``KEY=VALUE`` as words and after ``--set``, see `overrides_of`; ``text`` is the help."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="the same as KEY=VALUE without --set; changes given with --set are applied last",
    )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return the changes that a command line asks for, in the order in which they apply."""
    return [*arguments.overrides, *arguments.set]


def add_request(parser: argparse.ArgumentParser) -> None:
    """Adds what `read_request` reads, but for the methods."""
    add_suite(parser)
    add_overrides(parser, "change a key of the suite, e.g. model.encoder=resnet18")
    parser.add_argument("--seeds", metavar="N", help="number of seeds, or a list of seeds such as '0,1,5'")
    parser.add_argument(
        "--trials", type=positive, metavar="N", help="tune every row with N trials (search.trials; needs Optuna)"
    )
    parser.add_argument("--data", metavar="FOLDER", help="data folder")
    add_results(parser)


def add_methods(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of several methods."""
    parser.add_argument("--methods", metavar="NAMES", help="only these methods, separated by spaces")


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Add what a stored run may import, see `mtlbench.registry.Trusted`."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module of yours that the run may import; allow only code that you trust",
    )


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for ``type=`` of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


@dataclass(frozen=True)
class Request:
    """The suite with every override applied, the overrides as text, local choices, and where keys were given."""

    suite: Suite
    overrides: list[str]
    local: Local
    place: Place


def read_request(arguments: argparse.Namespace) -> Request:
    """Return the request that the arguments describe.

    What its names stand for is checked by `mtlbench.study.resolve.resolve`, which imports torch.

    Raises:
        SuiteError: With every fault of the suite and of the overrides that can be seen without torch.
    """
    overrides, chosen = overrides_of(arguments), None
    if arguments.seeds:
        overrides.append(f"seeds={_seeds(arguments.seeds)}")
    if arguments.trials:
        overrides.append(f"search.trials={arguments.trials}")
    if arguments.methods:
        chosen = arguments.methods.replace(",", " ").split()
    found = suites.read(arguments.suite, overrides, chosen)
    local = Local(data=arguments.data, devices=getattr(arguments, "devices", 1))
    if found.suite:
        local = replace(local, results=str(Path(arguments.results) / found.suite.name))
    if found.faults or found.suite is None:
        raise SuiteError("\n".join(found.faults))
    given = {key: value for key in ("methods", "seeds", "trials") if (value := getattr(arguments, key))}
    shown = [*overrides_of(arguments), *(f"{key}={value}" for key, value in given.items())]
    return Request(found.suite, shown, local, found.place)


def results_folder(root: str, suite: Suite, *, dry: bool = False) -> Path:
    """Returns ``results/<suite>``, writable; a dry run makes no folder.

    Raises:
        StoreError: If it cannot be written.
    """
    folder = Path(root) / suite.name
    if dry:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"Results must be writable. {folder}: {error.strerror or error}. Change the permissions, free space, or "
            "choose another folder with RESULTS= (--results)."
        ) from error
    return folder


def _seeds(text: str) -> list[int]:
    """Reads ``3`` as three seeds 0, 1, 2, and ``0,5`` as these two."""
    try:
        numbers = [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise SuiteError(f"SEEDS must be a number of seeds, or a list such as '0,5'. Found {text!r}.") from error
    if "," not in text and len(numbers) == 1:
        if numbers[0] < 1:
            raise SuiteError(f"SEEDS must be at least 1. Found {numbers[0]}.")
        return list(range(numbers[0]))
    return numbers
