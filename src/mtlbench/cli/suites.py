"""``mtlbench suites``."""

from __future__ import annotations

import argparse

from mtlbench import suite as suites


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the shipped suites with their titles."""
    for name, title in suites.available().items():
        print(f"{name:14} {title}")
    return 0
