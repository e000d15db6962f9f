"""``mtlbench check``."""

from __future__ import annotations

import argparse

from mtlbench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the method or data module."""
    parser.add_argument("target", help="name of a method, or module:Class")


def run(arguments: argparse.Namespace) -> int:
    """Runs the contract tests on a method, balancer or data module; exit code 1 if one fails."""
    import torch

    from mtlbench import registry, testing
    from mtlbench.data import MTLDataModule
    from mtlbench.training.trainer import quiet_lightning

    target = arguments.target
    quiet_lightning()
    torch.set_num_threads(1)
    thing = registry.load(target) if ":" in target else registry.find(target)
    is_data = isinstance(thing, type) and issubclass(thing, MTLDataModule)
    print(f"Checking {target} …", flush=True)
    findings = testing.check_data_module(target) if is_data else testing.check_method(target)
    for finding in findings:
        print(f"  {'ok    ' if finding.ok else 'FAILED'}  {finding.check}")
        if finding.detail:
            print("          " + finding.detail.replace("\n", "\n          "))
    failed = sum(not finding.ok for finding in findings)
    print(f"{len(findings) - failed} of {len(findings)} checks passed.")
    return ExitCode.FAILED if failed else ExitCode.DONE
