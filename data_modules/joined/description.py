"""Reads the option ``streams`` of a union: which data set each stream is, and which of its tasks it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlbench import registry
from mtlbench.data import MTLDataModule
from mtlbench.errors import SuiteError, unknown_name
from mtlbench.tasks import Task

KEYS = ("module", "root", "tasks", "options", "batch", "every")


def tasks_by_stream(streams: Any) -> dict[str, dict[str, Task]]:
    """Returns the tasks of every stream.

    Raises:
        SuiteError: A stream is described in another form, or two streams have a task of one name.
    """
    found: dict[str, dict[str, Task]] = {}
    owner: dict[str, str] = {}
    for name, given in checked(streams).items():
        known = module_of(name, given).tasks_of(given.get("options") or {})
        found[name] = {}
        for task in given.get("tasks") or known:
            if task not in known:
                raise SuiteError(f"Stream {name}: " + unknown_name(f"task of {given['module']}", str(task), known))
            if task in owner:
                raise SuiteError(
                    f"A task belongs to one stream. {task} is one of {owner[task]} and of {name}. Choose with `tasks`."
                )
            owner[task] = name
            found[name][task] = known[task]
    return found


def checked(streams: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the description of every stream.

    Raises:
        SuiteError: It has another form.
    """
    if not isinstance(streams, Mapping) or not streams:
        raise SuiteError(
            "data.options.streams maps each stream to its data, for example {digits: {module: "
            f"data_modules.digits:Digits, tasks: [left]}}. Found {streams!r}."
        )
    for name, given in streams.items():
        if not isinstance(given, Mapping) or not isinstance(given.get("module"), str):
            raise SuiteError(f"Stream {name} needs the module of its data. Found {given!r}.")
        for key in given:
            if key not in KEYS:
                raise SuiteError(f"Stream {name}: " + unknown_name("key of a stream", str(key), KEYS))
        for key in ("batch", "every"):
            if key in given and (isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < 1):
                raise SuiteError(f"Stream {name}: {key} is a whole number from 1. Found {given[key]!r}.")
    return {str(name): given for name, given in streams.items()}


def module_of(name: str, given: Mapping[str, Any]) -> type[MTLDataModule]:
    """Returns the data module of a stream.

    Raises:
        SuiteError: The stream names something else.
    """
    found = registry.load(given["module"])
    if not (isinstance(found, type) and issubclass(found, MTLDataModule)):
        raise SuiteError(f"Stream {name}: module names a subclass of MTLDataModule. Found {given['module']!r}.")
    return found


def common_splits(splits: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Returns the splits that all streams have, in order."""
    return tuple(split for split in splits[0] if all(split in others for others in splits))
