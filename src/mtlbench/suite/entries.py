"""Looks at the values of a suite: entries of ``methods``, numbers with a range, and how a message shows a value."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mtlbench.errors import path_part_fault
from mtlbench.suite.nodes import is_key
from mtlbench.suite.schema import ModelSection, Range, takes_images

SECTIONS = ("model", "optimiser", "trainer", "search")


def elsewhere(config: DictConfig, key: str) -> str:
    """Return a hint at the section that has a key of that name, for users who left the section out."""
    if difflib.get_close_matches(key, [str(k) for k in config], 1, 0.8):
        return ""
    for section in config:
        if not OmegaConf.is_missing(config, section) and isinstance(config[section], DictConfig):
            if key in config[section]:
                return f" Perhaps {section!s}.{key}?"
    return ""


def image_size_fault(model: ModelSection) -> str | None:
    """Return why ``model.image_size`` does not suit the encoder, or None."""
    size = list(model.image_size)
    if not takes_images(model.encoder):
        return f"is the size of images, and {model.encoder} takes none. Remove it." if size else None
    if not size:
        return "is required and has no value. Give height and width."
    return None if len(size) == 2 else f"is height and width, found {shown(size)}."


def method_faults(methods: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Yield the index of every faulty entry of ``methods`` and what is wrong with it."""
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
            label = label_of(entry)
            if fault := _balancer_fault(entry):
                yield index, fault
            given = entry.get("label") if isinstance(entry, DictConfig) else None
            if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int, float))):
                yield index, f"methods: a label must be text. Found {shown(given)}."
            elif fault := path_part_fault(label):
                yield index, f"methods: a label {fault}"
            if label in labels:
                yield index, f"methods: {label!r} stands twice. Give one of them another label (label: ...)."
            labels.add(label)


def container_fault(current: Any, value: Any) -> str | None:
    """Return why a value cannot replace a mapping or a list, or None.

    Args:
        current: What the key holds now.
        value: The new value.
    """
    if isinstance(current, DictConfig) and not isinstance(value, dict | None):
        return f"must be a mapping, such as {{key: value}}. Found {shown(value)!r}."
    if isinstance(current, ListConfig) and isinstance(value, dict):
        return f"must be a list, such as [value, value]. Found {shown(value)!r}."
    return None


def task_list_fault(names: Sequence[Any]) -> str | None:
    """Return why a list cannot stand for the tasks that a suite keeps, or None."""
    if not all(is_key(name) for name in names):
        return f"tasks must be a mapping, or a list of names. Found {shown(names)}."
    twice = {name for name in names if names.count(name) > 1}
    return f"tasks must be distinct. Found {', '.join(sorted(twice))} twice." if twice else None


def _balancer_fault(entry: Any) -> str | None:
    rule = entry.get("balancer") if isinstance(entry, DictConfig) else None
    if rule is None or isinstance(rule, str) or isinstance(rule, DictConfig) and isinstance(rule.get("name"), str):
        return None
    return f"methods: balancer must be a name, or a mapping with a name and its arguments. Found {shown(rule)}."


def label_of(entry: Any) -> str:
    """Return the label of an entry of ``methods``, even if the entry is faulty."""
    if isinstance(entry, (dict, DictConfig)):
        return str(entry.get("label") or entry.get("name"))
    return str(entry)


def out_of_range(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield the key of every number outside its range, and the end of a sentence that says so."""
    for key, value, allowed in numbers(config, ""):
        if not all(isinstance(each, (int, float)) and each in allowed for each in listed(value)):
            yield key, f"must be {allowed}, found {shown(value)}."


def numbers(config: DictConfig, above: str) -> Iterator[tuple[str, Any, Range]]:
    """Yields key, value and allowed values of every number of a configuration that has a range."""
    cls = OmegaConf.get_type(config)
    if not dataclasses.is_dataclass(cls):
        for key in map(str, config):
            if isinstance(value := config[key], DictConfig):
                yield from numbers(value, f"{above}{key}.")
        return
    for field in dataclasses.fields(cls):
        if OmegaConf.is_missing(config, field.name):
            continue
        value = config[field.name]
        if "range" in field.metadata:
            yield f"{above}{field.name}", value, field.metadata["range"]
        elif isinstance(value, DictConfig) and field.name in (*SECTIONS, "tasks"):
            yield from numbers(value, f"{above}{field.name}.")


def listed(value: Any) -> list[Any]:
    """Return the items of a list, the value itself as the only item, or nothing for None."""
    return [] if value is None else list(value) if isinstance(value, ListConfig) else [value]


def shown(value: Any) -> str:
    """Return a value as text for a message, cut if it is long."""
    return cut(repr(value) if isinstance(value, bytes) else str(value))


def cut(text: str, length: int = 200) -> str:
    """Return the first characters of a text."""
    return text if len(text) <= length else f"{text[:length]}…"
