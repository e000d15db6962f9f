"""``mtlbench suites``."""

from __future__ import annotations

import argparse

from mtlbench import suite as suites


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the shipped suites with their titles."""
    found = suites.available()
    width = max(map(len, found), default=0)
    for name, title in found.items():
        print(f"{name:{width}}  {title}")
    return 0
