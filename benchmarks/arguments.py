"""Command lines of benchmarks that take a few values in order."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any


def call(main: Callable[..., None], about: str | None) -> None:
    """Calls a function with the values of the command line, which it may leave out from the end.

    Args:
        main: Every parameter has a default value, whose type is that of the value.
        about: Docstring of the benchmark.
    """
    main(**vars(parser_of(main, about).parse_args()))


def parser_of(main: Callable[..., None], about: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a function's values.

    Example:
        >>> def main(size: int = 64, seconds: float = 1.5) -> None: ...
        >>> vars(parser_of(main, None).parse_args(["32"]))
        {'size': 32, 'seconds': 1.5}
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, parameter in inspect.signature(main).parameters.items():
        options: dict[str, Any] = {"type": type(parameter.default), "default": parameter.default}
        parser.add_argument(name, nargs="?", help="default: %(default)s", **options)
    return parser
