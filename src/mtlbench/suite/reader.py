"""Suites, which say what is compared: reads, checks and overrides ``experiments/*.yaml``. Needs no torch.

Every fault of a file and of the overrides is reported at once, with its line.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlbench import registry
from mtlbench.errors import SuiteError, path_part_fault, unknown_name
from mtlbench.metrics.relative import PROTOCOL
from mtlbench.suite import nodes, search
from mtlbench.suite.entries import (
    container_fault,
    cut,
    elsewhere,
    image_size_fault,
    label_of,
    method_faults,
    out_of_range,
    shown,
    task_list_fault,
)
from mtlbench.suite.files import locate
from mtlbench.suite.nodes import Unreadable
from mtlbench.suite.schema import FORMAT, SearchSection, Suite, TaskSection, type_of

SELECTIONS = ("last", "best")
Section = TypeVar("Section")
RENAMED = {"study": "scenario"}
"""Keys of earlier versions, with their present names."""


@dataclass(frozen=True)
class Reading:
    """A suite with its faults and the places of its keys.

    Attributes:
        suite: The suite, with defaults in place of faulty values; None if a required value is missing.
        faults: Every fault with its place.
        places: Where a key was given: ``file:line`` or the override; entries of methods as ``methods.<index>``.
        path: The file.
    """

    suite: Suite | None
    faults: list[str]
    places: dict[str, str]
    path: Path

    def place(self, key: str) -> str:
        """Returns where a key, or the nearest one above it, was given."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, str(self.path))


def read(name: str, overrides: Sequence[str] = (), methods: Sequence[str] | None = None) -> Reading:
    """Reads a suite by name or path and applies dotted overrides, ``key.key=value``; collects faults.

    Args:
        name: Name of a suite, or path of its file.
        overrides: In the order in which they apply.
        methods: Labels of the entries of ``methods`` to keep; a name that is no label stands for that method.

    Raises:
        SuiteError: If there is no such suite.
    """
    path = locate(name)
    config = copy.deepcopy(_blank())
    reader = _Reader(config)
    reader.read_file(path)
    for text in overrides:
        reader.read_override(text)
    if methods:
        reader.choose(methods)
    missing = reader.check_values(str(path))
    suite: Any = None if missing else OmegaConf.to_object(config)
    return Reading(suite, [cut(fault, 2000) for fault in reader.faults], reader.places, path)


@functools.cache
def _blank() -> DictConfig:
    """Return a suite of defaults; a copy of it is made much faster than another one from the classes."""
    return OmegaConf.structured(Suite)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` words as a dictionary, with values in YAML as in a suite.

    Raises:
        SuiteError: If a word has another form.
    """
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.isidentifier():
            raise SuiteError(f"An option must have the form KEY=VALUE, with the name of one argument. Found {word!r}.")
        try:
            found[key] = nodes.value_of(nodes.compose(value))
        except Unreadable as error:
            raise SuiteError(f"The value of an option must be valid YAML. {cut(word)!r}: {error}") from error
        if fault := nodes.value_fault(found[key], finite=True):
            raise SuiteError(f"Option {cut(word)!r}: {fault}")
    return found


def changed_section(section: Section, changes: Mapping[str, Any]) -> Section:
    """Return a section of a suite with some of its keys changed, under the rules of the suite's own keys.

    Raises:
        SuiteError: With every value that is of the wrong type or out of range.
    """
    reader = _Reader(OmegaConf.structured(section))
    for key, value in changes.items():
        reader.set(type(section).__name__, (str(key),), value)
    faults = [fault.partition(": ")[2] for fault in reader.faults]
    faults += [f"{key} {fault}" for key, fault in out_of_range(reader.config)]
    if faults:
        raise SuiteError("\n".join(faults))
    found: Any = OmegaConf.to_object(reader.config)
    return found


def load(name: str, overrides: Sequence[str] = ()) -> Suite:
    """Reads a suite as `read` does.

    Raises:
        SuiteError: Listing every fault with file and line.
    """
    found = read(name, overrides)
    if found.faults or found.suite is None:
        raise SuiteError("\n".join(found.faults))
    return found.suite


class _Reader:
    """Sets values in a structured configuration one by one and collects what does not fit."""

    def __init__(self, config: DictConfig):
        self.config = config
        self.faults: list[str] = []
        self.places: dict[str, str] = {}
        self.labels: set[str] = set()

    def read_file(self, path: Path) -> None:
        try:
            node = nodes.compose(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            self.faults.append(f"{path}: a suite must be UTF-8 text; byte {error.start} is not. Save it as UTF-8.")
        except OSError as error:
            self.faults.append(f"{path}: a suite must be a file that can be read: {error.strerror}.")
        except Unreadable as error:
            self.faults.append(f"{path}: {error}")
        else:
            if nodes.is_mapping(node):
                self._read_section(node, (), lambda found: f"{path}:{nodes.line_of(found)}")
            else:
                self.faults.append(f"{path}: a suite is a mapping of keys to values.")

    def read_override(self, text: str) -> None:
        key, sign, value = text.partition("=")
        place = f"override {cut(text)!r}"
        if not sign or not all(map(nodes.is_key, key.split("."))):
            self.faults.append(f"{place}: must have the form key.key=value. Each key is one word without brackets.")
            return
        try:
            node = nodes.compose(value)
        except Unreadable as error:
            self.faults.append(f"{place}: {error}")
        else:
            self._read_value(node, tuple(key.split(".")), lambda found: place, place)

    def choose(self, names: Sequence[str]) -> None:
        """Keep the entries of ``methods`` with these labels and their arguments; any other name stands for a method."""
        entries: Any = OmegaConf.to_container(self.config.methods)
        by_label = {label_of(entry): entry for entry in entries}
        # The leaderboard shows `module:Class` as `Class`.
        by_label = {label.rpartition(":")[2]: entry for label, entry in by_label.items()} | by_label
        self.set(f"override 'methods={' '.join(names)}'", ("methods",), [by_label.get(name, name) for name in names])

    def check_values(self, where: str) -> set[str]:
        """Note every value that breaks a rule, and return the required keys that have none."""
        missing = OmegaConf.missing_keys(self.config)
        for key in sorted(missing):
            if key not in self.places:
                self.faults.append(f"{where}: {key} is required and has no value.")
            elif key in ("version", "trainer.steps"):
                # The wrong type was reported; with a stand-in the rest can be checked too.
                OmegaConf.update(self.config, key, 1)
                missing.remove(key)
        self._check_lists(where)
        for key, fault in out_of_range(self.config):
            self._fault(key, where, f"{key} {fault}")
        self._check_names(where, missing)
        self._check_choices(where)
        return missing

    def _check_choices(self, where: str) -> None:
        """Refuse words that name nothing."""
        if self.config.format != FORMAT:
            self._fault("format", where, f"format must be {FORMAT}, found {self.config.format}.")
        if len(self.config.named) not in (0, 2):
            self._fault(
                "named",
                where,
                f"named must be a pair of labels, method and reference, or empty; found {self.config.named}.",
            )
        for key, fault in search.faults(self.config, self.places):
            self._fault(key, where, fault)
        if self.config.selection not in SELECTIONS:
            self._fault("selection", where, unknown_name("selection", self.config.selection, SELECTIONS))
        if self.config.protocol != PROTOCOL:
            self._fault("protocol", where, f"protocol must be {PROTOCOL}, found {shown(self.config.protocol)}.")
        for key, names in {"baseline": [self.config.baseline], "named": self.config.named}.items():
            for name in names:
                if name not in self.labels and name not in (known := {*self.labels, *registry.names()}):
                    self._fault(key, where, f"{key}: {unknown_name('label of a method', name, known)}")

    def _check_names(self, where: str, missing: Collection[str]) -> None:
        """Refuse names that are no plain part of a path, because they become folders, files and cells of tables."""
        if "name" not in missing and (fault := path_part_fault(self.config.name)):
            self._fault("name", where, f"name {fault}")
        for task in self.config.tasks:
            if fault := path_part_fault(str(task)):
                self._fault(f"tasks.{task}", where, f"the name of a task {fault}")
        if fault := image_size_fault(self.config.model):
            self._fault("model.image_size", where, f"model.image_size {fault}")

    def _fault(self, key: str, where: str, text: str) -> None:
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        self.faults.append(f"{self.places.get(key, where)}: {text}")

    def _check_lists(self, where: str) -> None:
        if not self.config.methods:
            self.faults.append(f"{where}: methods must name at least one method.")
        for index, fault in method_faults(self.config.methods):
            place = self.places.get(f"methods.{index}", self.places.get("methods", where))
            self.faults.append(f"{place}: {fault}")
        if len(set(self.config.seeds)) != len(self.config.seeds) or not self.config.seeds:
            self._fault("seeds", where, f"seeds must be distinct and at least one, found {list(self.config.seeds)}.")
        apart = list(self.config.confirm)
        if len(set(apart)) != len(apart) or set(apart) & set(self.config.seeds):
            self._fault("confirm", where, f"confirm must be distinct seeds that are not among seeds, found {apart}.")
        if apart and not self.config.named:
            self._fault("confirm", where, f"confirm sets seeds apart for the pair in named. Found {apart}, no named.")

    def _read_section(self, node: Any, above: tuple[str, ...], place: Callable[[nodes.Node], str]) -> None:
        """Read a mapping whose keys the schema knows, or whose keys are free but lie in a section.

        Args:
            node: The mapping.
            above: Its own key.
            place: Where a node stands.
        """
        seen: set[Any] = set()
        for key_node, value_node in node.value:
            where, key = place(key_node), key_node.value
            if fault := nodes.key_fault(key_node):
                self.faults.append(f"{where}: {fault}")
                continue
            if not nodes.is_key(key):
                self.faults.append(f"{where}: a key must be one word without dots and brackets. Found {shown(key)!r}.")
                continue
            if key in seen:
                self.faults.append(f"{where}: {'.'.join((*above, key))} is given twice.")
            seen.add(key)
            self._read_value(value_node, (*above, key), place, where)

    def _read_value(
        self, node: nodes.Node | None, keys: tuple[str, ...], place: Callable[[nodes.Node], str], where: str
    ) -> None:
        """Read the value of a key, which may be a section."""
        name = ".".join(keys)
        if nodes.is_mapping(node) and node.value and self._is_section(keys):
            self.places[name] = where
            self._read_section(node, keys, place)
            return
        try:
            value = nodes.value_of(node, text=self._kind_of(keys) == "text")
        except Unreadable as error:
            self.faults.append(f"{where}: {name}: {error}")
            return
        self.set(where, keys, value)
        if keys == ("methods",) and node is not None:
            for index, line in enumerate(nodes.entries_of(node)):
                self.places[f"methods.{index}"] = place(line)

    def _is_section(self, keys: tuple[str, ...]) -> bool:
        return self.fault_of(keys) is None and isinstance(OmegaConf.select(self.config, ".".join(keys)), DictConfig)

    def fault_of(self, keys: tuple[str, ...]) -> str | None:
        """Returns why a key cannot exist, or None; creates entries of ``tasks``, whose names are free."""
        at: Any = self.config
        for depth, key in enumerate(keys):
            if not isinstance(at, DictConfig):
                return f"{'.'.join(keys[:depth])} is a single value, which has no key {key!r}."
            kind = OmegaConf.get_type(at)
            if key not in at.keys() and kind is dict and at is self.config.tasks:
                at[key] = TaskSection()
            if depth == 0 and key in RENAMED:
                return f"{key} was renamed to {RENAMED[key]}. Write {'.'.join((RENAMED[key], *keys[1:]))} instead."
            if key not in at.keys() and kind is not dict:
                names = [*at.keys()]
                return unknown_name("key", key, names) + elsewhere(self.config, key)
            if key not in at.keys() or OmegaConf.is_missing(at, key):
                return None
            at = at[key]
        return None

    def _kind_of(self, keys: tuple[str, ...]) -> str | None:
        """Return the type that the schema has for a key, in plain words; None if it has none."""
        at: Any = self.config
        for key in keys[:-1]:
            at = at[key] if isinstance(at, DictConfig) and key in at else None
        return type_of(OmegaConf.get_type(at), keys[-1]) if isinstance(at, DictConfig) else None

    def _value_fault(self, name: str, keys: tuple[str, ...], value: Any) -> str | None:
        """Return why a key cannot have a value, or None."""
        fault = self.fault_of(keys)  # It creates entries of ``tasks``.
        kind = self._kind_of(keys)
        if kind == "true or false" and isinstance(value, int) and value not in (0, 1):
            return f"{name} must be {kind}. Found {value!r}."
        if fault:
            return fault
        if text := nodes.value_fault(value, finite=kind is None):
            return f"{name}: {text}"
        if name == "tasks" and isinstance(value, list):
            return task_list_fault(value)
        nested = (isinstance(item, (list, dict, type(None))) for item in value) if isinstance(value, list) else ()
        if kind == "a list" and name != "methods" and any(nested):
            return f"{name} must be a list of single values. Found {shown(value)}."
        if name == "search":
            wrong = not search.is_none(value) and not isinstance(value, dict)
            return f"search must be none, or a mapping with trials. Found {shown(value)}." if wrong else None
        text = container_fault(OmegaConf.select(self.config, name), value)
        return f"{name} {text}" if text else None

    def set(self, where: str, keys: tuple[str, ...], value: Any) -> None:
        """Set the value of a key, or note why it cannot be set."""
        name = ".".join(keys)
        if name == "methods":
            self.places = {key: place for key, place in self.places.items() if not key.startswith("methods.")}
        self.places[name] = where
        if fault := self._value_fault(name, keys, value):
            self.faults.append(f"{where}: {fault}")
            return
        if name == "tasks" and isinstance(value, list):
            self.config.tasks = {task: self.config.tasks.get(task, TaskSection()) for task in value}
            return
        if name == "methods" and isinstance(value, str):
            value = value.split()
        if name == "search" and search.is_none(value):
            self.places = {key: place for key, place in self.places.items() if key.partition(".")[0] != "search"}
            value = SearchSection()
        try:
            OmegaConf.update(self.config, name, value, merge=True)
        except OmegaConfBaseException as error:
            wanted = type_of(error.object_type, str(error.key))
            rule = f" must be {wanted}. Found {shown(value)!r}." if wanted else f": {str(error).splitlines()[0]}"
            self.faults.append(f"{where}: {name}{rule}")
        except OverflowError:
            self.faults.append(f"{where}: {name} is larger than any number that a computer calculates with.")
        if name == "methods":
            self.labels |= {label_of(entry) for entry in self.config.methods}
