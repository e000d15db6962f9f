"""Suites, which say what is compared: reads, checks and overrides ``experiments/*.yaml``. Needs no torch.

Every fault of a file and of the overrides is reported at once, with its line.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlbench.errors import SuiteError, path_part_fault, unknown_name
from mtlbench.suite.schema import FORMAT, Range, Suite, TaskSection, type_of

SELECTIONS = ("last", "best")
SECTIONS = ("model", "optimiser", "trainer")
NESTED = "nested too deeply. A suite has few levels."
RENAMED = {"study": "scenario"}
"""Keys of earlier versions, with their present names."""


def folders() -> list[Path]:
    """Return the folders that hold suites: ``experiments/`` of the current folder if there is one, then the shipped."""
    here = Path("experiments")
    installed = Path(__file__).resolve().parents[1] / "experiments"
    shipped = installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "experiments"
    return [here, shipped] if here.is_dir() and here.resolve() != shipped else [shipped]


def available() -> dict[str, str]:
    """Return every suite by name, with its title; a suite of the user's own replaces a shipped one of its name."""
    found: dict[str, str] = {}
    for folder in reversed(folders()):
        for path in sorted(folder.glob("*.yaml")):
            note = f" ({path} replaces the shipped suite of this name)" if path.stem in found else ""
            found[path.stem] = _title(path) + note
    return dict(sorted(found.items()))


def _title(path: Path) -> str:
    """Return the title of a suite's file, ``""`` if it has none or cannot be read; `read` reports why."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        return ""
    return str(content.get("title", "")) if isinstance(content, dict) else ""


def locate(name: str) -> Path:
    """Return the file of a suite given by name or by path.

    Raises:
        SuiteError: If there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise SuiteError(f"A suite given as a path must exist. There is no file {path}.")
    for folder in folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    places = " and ".join(f"{folder}/" for folder in folders())
    raise SuiteError(unknown_name("suite", name, available()) + f" Looked in {places}.")


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
    config = OmegaConf.structured(Suite)
    reader = _Reader(config)
    reader.read_file(path)
    for text in overrides:
        reader.read_override(text)
    if methods:
        reader.choose(methods)
    reader.check_values(str(path))
    whole = not OmegaConf.missing_keys(config)
    suite: Any = OmegaConf.to_object(config) if whole else None
    return Reading(suite, reader.faults, reader.places, path)


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
            found[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SuiteError(f"The value of an option must be valid YAML. {_cut(word)!r}: {error}") from error
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

    def read_file(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            self.faults.append(f"{path}: a suite must be UTF-8 text; byte {error.start} is not. Save it as UTF-8.")
            return
        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                self.faults.append(f"{path}: a suite is written out in full; anchors and aliases are not used.")
                return
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            self.faults.append(f"{path}: not valid YAML: {error}")
            return
        except RecursionError:
            self.faults.append(f"{path}: {NESTED}")
            return
        if not isinstance(node, yaml.MappingNode):
            self.faults.append(f"{path}: a suite is a mapping of keys to values.")
            return
        for line, keys, value in self._leaves(node, (), str(path)):
            self._set(f"{path}:{line}", keys, value)

    def read_override(self, text: str) -> None:
        key, sign, value = text.partition("=")
        if not sign or not key:
            self.faults.append(f"override {text!r}: must have the form key.key=value.")
            return
        try:
            parsed = yaml.safe_load(value) if value else None
        except (yaml.YAMLError, ValueError) as error:
            self.faults.append(f"override {_cut(text)!r}: {error}")
            return
        except RecursionError:
            self.faults.append(f"override {_cut(text)!r}: {NESTED}")
            return
        self._set(f"override {_cut(text)!r}", tuple(key.split(".")), parsed)

    def choose(self, names: Sequence[str]) -> None:
        """Keep the entries of ``methods`` with these labels and their arguments; any other name stands for a method."""
        by_label = {_label_of(entry): entry for entry in self.config.methods}
        # The leaderboard shows `module:Class` as `Class`.
        by_label = {label.rpartition(":")[2]: entry for label, entry in by_label.items()} | by_label
        self._set(f"override 'methods={' '.join(names)}'", ("methods",), [by_label.get(name, name) for name in names])

    def check_values(self, where: str) -> None:
        for key in sorted(OmegaConf.missing_keys(self.config)):
            if key not in self.places:
                self.faults.append(f"{where}: {key} is required and has no value.")
            elif key in ("version", "trainer.steps"):
                # The wrong type was reported; with a stand-in the rest can be checked too.
                OmegaConf.update(self.config, key, 1)
        missing = OmegaConf.missing_keys(self.config)
        self._check_lists(where)
        for key, value, allowed in _numbers(self.config, ""):
            if key not in missing and not all(each in allowed for each in _listed(value)):
                self._fault(key, where, f"{key} must be {allowed}, found {_shown(value)}.")
        self._check_names(where, missing)
        if self.config.format != FORMAT:
            self._fault("format", where, f"format must be {FORMAT}, found {self.config.format}.")
        if len(self.config.named) not in (0, 2):
            self._fault(
                "named",
                where,
                f"named must be a pair of labels, method and reference, or empty; found {self.config.named}.",
            )
        if self.config.selection not in SELECTIONS:
            self._fault("selection", where, unknown_name("selection", self.config.selection, SELECTIONS))

    def _check_names(self, where: str, missing: Collection[str]) -> None:
        """Refuse names that are no plain part of a path, because they become folders, files and cells of tables."""
        if "name" not in missing and (fault := path_part_fault(self.config.name)):
            self._fault("name", where, f"name {fault}")
        for task in self.config.tasks:
            if fault := path_part_fault(str(task)):
                self._fault(f"tasks.{task}", where, f"the name of a task {fault}")
        if "model.image_size" not in missing and len(self.config.model.image_size) != 2:
            found = _shown(self.config.model.image_size)
            self._fault("model.image_size", where, f"model.image_size is height and width, found {found}.")

    def _fault(self, key: str, where: str, text: str) -> None:
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        self.faults.append(f"{self.places.get(key, where)}: {text}")

    def _check_lists(self, where: str) -> None:
        if not self.config.methods:
            self.faults.append(f"{where}: methods must name at least one method.")
        for index, fault in _method_faults(self.config.methods):
            place = self.places.get(f"methods.{index}", self.places.get("methods", where))
            self.faults.append(f"{place}: {fault}")
        if len(set(self.config.seeds)) != len(self.config.seeds) or not self.config.seeds:
            self._fault("seeds", where, f"seeds must be distinct and at least one, found {list(self.config.seeds)}.")
        apart = list(self.config.confirm)
        if len(set(apart)) != len(apart) or set(apart) & set(self.config.seeds):
            self._fault("confirm", where, f"confirm must be distinct seeds that are not among seeds, found {apart}.")
        if apart and not self.config.named:
            self._fault("confirm", where, f"confirm sets seeds apart for the pair in named. Found {apart}, no named.")

    def _leaves(self, node: yaml.MappingNode, above: tuple[str, ...], path: str) -> Iterator[tuple[int, Any, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                self.faults.append(f"{path}:{line}: {'.'.join((*above, key))} is given twice.")
            seen.add(key)
            keys = (*above, key)
            if isinstance(value_node, yaml.MappingNode) and value_node.value and self._is_section(keys):
                self.places[".".join(keys)] = f"{path}:{line}"
                yield from self._leaves(value_node, keys, path)
                continue
            if keys == ("methods",) and isinstance(value_node, yaml.SequenceNode):
                lines = [item.start_mark.line + 1 for item in value_node.value]
                self.places |= {f"methods.{index}": f"{path}:{at}" for index, at in enumerate(lines)}
            try:
                yield line, keys, _construct(value_node)
            except (yaml.YAMLError, ValueError) as error:
                self.faults.append(f"{path}:{line}: {'.'.join(keys)}: {error}")
            except RecursionError:
                self.faults.append(f"{path}:{line}: {'.'.join(keys)}: {NESTED}")

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
                return unknown_name("key", key, names) + _elsewhere(self.config, key)
            if key not in at.keys() or OmegaConf.is_missing(at, key):
                return None
            at = at[key]
        return None

    def _set(self, where: str, keys: tuple[str, ...], value: Any) -> None:
        name = ".".join(keys)
        if name == "methods" and where.startswith("override"):
            self.places = {key: place for key, place in self.places.items() if not key.startswith("methods.")}
        self.places[name] = where
        try:
            text = repr(value)
        except ValueError:  # Python refuses to print integers of thousands of digits.
            self.faults.append(f"{where}: {name}: a number of thousands of digits.")
            return
        if "${" in text:
            self.faults.append(f"{where}: {name}: ${{...}} is not expanded. Write the value out.")
            return
        fault = self.fault_of(keys)
        if fault:
            self.faults.append(f"{where}: {fault}")
            return
        if name == "methods" and isinstance(value, str):
            value = value.split()
        try:
            OmegaConf.update(self.config, name, value, merge=True)
        except OmegaConfBaseException as error:
            wanted = type_of(error.object_type, str(error.key))
            rule = f" must be {wanted}. Found {value!r}." if wanted else f": {str(error).splitlines()[0]}"
            self.faults.append(f"{where}: {name}{rule}")


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _elsewhere(config: DictConfig, key: str) -> str:
    """Return a hint at the section that has a key of that name, for users who left the section out."""
    if difflib.get_close_matches(key, [str(k) for k in config], 1, 0.8):
        return ""
    for section in config:
        if not OmegaConf.is_missing(config, section) and isinstance(config[section], DictConfig):
            if key in config[section]:
                return f" Perhaps {section!s}.{key}?"
    return ""


def _method_faults(methods: Sequence[Any]) -> Iterator[tuple[int, str]]:
    labels: set[str] = set()
    for index, entry in enumerate(methods):
        if isinstance(entry, bool):
            yield index, f"methods: {entry} is a truth value in YAML, not a method. Write the name in quotes."
        elif not isinstance(entry, str) and not (isinstance(entry, DictConfig) and isinstance(entry.get("name"), str)):
            yield (
                index,
                f"methods: an entry must be a name, or a mapping with a name and its arguments. Found {entry!r}.",
            )
        else:
            label = _label_of(entry)
            if fault := path_part_fault(label):
                yield index, f"methods: a label {fault}"
            if label in labels:
                yield index, f"methods: {label!r} stands twice. Give one of them another label (label: ...)."
            labels.add(label)


def _label_of(entry: Any) -> str:
    """Return the label of an entry of ``methods``, even if the entry is faulty."""
    if isinstance(entry, (dict, DictConfig)):
        return str(entry.get("label") or entry.get("name"))
    return str(entry)


def _numbers(config: DictConfig, above: str) -> Iterator[tuple[str, Any, Range]]:
    """Yields key, value and allowed values of every number of a configuration that has a range."""
    cls = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(cls):
        for key in map(str, config):
            if isinstance(value := config[key], DictConfig):
                yield from _numbers(value, f"{above}{key}.")
        return
    for field in dataclasses.fields(cls):
        if OmegaConf.is_missing(config, field.name):
            continue
        value = config[field.name]
        if "range" in field.metadata:
            yield f"{above}{field.name}", value, field.metadata["range"]
        elif isinstance(value, DictConfig) and field.name in (*SECTIONS, "tasks"):
            yield from _numbers(value, f"{above}{field.name}.")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, ListConfig) else [value]


def _shown(value: Any) -> str:
    return _cut(repr(value) if isinstance(value, bytes) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
