"""``mtlbench methods``."""

from __future__ import annotations

import argparse

from mtlbench import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the name of one method."""
    parser.add_argument(
        "name", nargs="?", help="method whose documentation and hyper-parameters are shown (default: list all)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints all methods, or one with its documentation and hyper-parameters."""
    name = arguments.name
    if name is None:
        for key, text in registry.shipped().items():
            print(f"{key:22} {text}")
        print("\nA method of your own: `methods: [my_module:MyMethod]`. More: mtlbench methods NAME")
        return 0
    cls = registry.find(name)
    print(f"{name} ({cls.__module__}:{cls.__name__})\n\n{cls.__doc__}\n")
    for key, parameter in registry.arguments_of(cls).items():
        print(f"  {key} = {parameter.default!r}")
    return 0
