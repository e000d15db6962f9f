"""Options of executors, from the file ``executor.yaml`` and from the command line. They never change a result.

The file has one section per executor and belongs to a machine or a cluster, not to a suite::

    slurm:
      jobs: 8
      sbatch: ["--partition=gpu", "--gres=gpu:1"]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.suite import nodes
from mtlbench.suite.schema import type_of

FILE = "executor.yaml"
_KINDS: dict[str, tuple[type, ...]] = {
    "a whole number": (int,),
    "a number": (int, float),
    "true or false": (bool,),
    "text": (str,),
    "a list": (list,),
}
T = TypeVar("T")


def read_options(kind: type[T], name: str, given: Iterable[str] = (), file: Path = Path(FILE)) -> T:
    """Returns the options of an executor: its defaults, changed by the file, then by the command line.

    Args:
        kind: Dataclass of the options.
        name: Name of the executor, which is its section of the file.
        given: ``KEY=VALUE`` from the command line. Values for a list that are given several times are collected.
        file: Where the section is read; the file may be absent.

    Raises:
        SuiteError: If the file cannot be read, or an option is unknown or has a value of another kind.
    """
    values = {key: (value, f"{file}: {name}.{key}") for key, value in _section(file, name).items()}
    values |= {key: (value, f"--option {key}") for key, value in _given(kind, given).items()}
    return kind(**{key: _checked(kind, key, value, place) for key, (value, place) in values.items()})


def _section(file: Path, name: str) -> Mapping[str, Any]:
    try:
        content = nodes.value_of(nodes.compose(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # The message of an unreadable document has a place in it.
        raise SuiteError(f"{file}: the options of executors must be readable. Found: {error}") from error
    section = content.get(name) if isinstance(content, dict) else content
    if section is not None and not isinstance(section, dict):
        raise SuiteError(f"{file}: the file has one section of KEY: VALUE per executor. Found {section!r}.")
    return section or {}


def _given(kind: type, words: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise SuiteError(f"--option takes KEY=VALUE. Found {word!r}.")
        if type_of(kind, key) == "a list":
            found.setdefault(key, []).append(text)
        else:
            try:
                found[key] = nodes.value_of(nodes.compose(text), text=type_of(kind, key) == "text")
            except ValueError as error:
                raise SuiteError(f"--option {key}: {error}") from error
    return found


def _checked(kind: Any, key: str, value: Any, place: str) -> Any:
    wanted = type_of(kind, key)
    if wanted is None:
        raise SuiteError(f"{place}: {unknown_name('option', key, [each.name for each in fields(kind)])}")
    if not isinstance(value, _KINDS[wanted]) or (isinstance(value, bool) and wanted != "true or false"):
        raise SuiteError(f"{place} must be {wanted}. Found {value!r}.")
    allowed = next(each for each in fields(kind) if each.name == key).metadata.get("range")
    if allowed is not None and value not in allowed:
        raise SuiteError(f"{place} must be {allowed}. Found {value!r}.")
    for text in value if isinstance(value, list) else [value]:
        if wanted in ("text", "a list") and (not isinstance(text, str) or "\n" in text):
            raise SuiteError(f"{place} must hold text of one line. Found {text!r}.")
    return value
