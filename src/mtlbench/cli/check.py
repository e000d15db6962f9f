"""``mtlbench check``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from mtlbench import registry
from mtlbench import suite as suites
from mtlbench.cli.arguments import add_overrides, overrides_of
from mtlbench.errors import DataError, ExitCode, MethodError, MtlbenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the method or data module, and what to build it with."""
    parser.add_argument("target", help="name of a method, or module:Class")
    parser.add_argument("--data", metavar="FOLDER", help="data folder, for a data module")
    add_overrides(parser, "a hyper-parameter of a method, or an option of a data module")


def run(arguments: argparse.Namespace) -> int:
    """Run the contract tests on a method, balancer or data module; exit code 1 if one fails."""
    target, options = arguments.target, suites.options_of(overrides_of(arguments))
    thing = registry.load(target) if ":" in target else registry.find(target)  # Refuses most names without torch.
    import torch

    from mtlbench import testing
    from mtlbench.data import MTLDataModule

    torch.set_num_threads(1)
    if not (isinstance(thing, type) and issubclass(thing, (registry.Registered, MTLDataModule))):
        raise MethodError(f"`mtlbench check` needs a method, balancer or data module. {target!r} is {thing!r}.")
    print(f"Checking {target} …", flush=True)
    if issubclass(thing, MTLDataModule):
        _refuse_unusable(thing, arguments.data, options)
        findings = testing.check_data_module(target, arguments.data, **options)
    else:
        registry.check_arguments(target, thing, options)
        findings = testing.check_method(target, arguments=options)
    for finding in findings:
        print(f"  {'ok    ' if finding.ok else 'FAILED'}  {finding.check}")
        if finding.detail:
            print("          " + finding.detail.replace("\n", "\n          "))
    failed = sum(not finding.ok for finding in findings)
    print(f"{len(findings) - failed} of {len(findings)} checks passed.")
    return ExitCode.FAILED if failed else ExitCode.DONE


def _refuse_unusable(cls: type, root: str | None, options: Mapping[str, Any]) -> None:
    """Refuse a data module that cannot be built as asked, or whose files are missing.

    Raises:
        DataError: With what is missing, and how to name it.
    """
    try:
        missing = cls(root, **options).missing()
    except MtlbenchError:
        raise
    except Exception as error:
        raise DataError(
            f"A data module is built from a folder and options. {cls.__name__}: {error}. Name the folder with --data "
            "and the options with --set KEY=VALUE."
        ) from error
    if missing:
        lines = "\n".join(missing)
        raise DataError(f"{lines}\nSpecify the data folder with --data FOLDER.")
