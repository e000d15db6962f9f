"""Reads YAML strictly, so that an accepted value is what was written. The one file that knows the library."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

import yaml

from mtlbench.errors import UNSAFE

DEEPEST = 32
"""Levels of nesting that a suite may have."""
NESTED = "nested too deeply. A suite has few levels."

_TAG = "tag:yaml.org,2002:"
_WORDS = tuple(_TAG + kind for kind in ("int", "float", "bool", "timestamp"))
# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_MISLEADING = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")

Node = yaml.Node


class Unreadable(ValueError):
    """A text is not what a suite may hold. The message is the end of a sentence that begins with the place."""


def compose(text: str) -> Node | None:
    """Return the tree of one YAML document, None for an empty one.

    Raises:
        Unreadable: If it is not valid YAML, uses anchors, aliases or tags, or is nested more than `DEEPEST` levels.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise Unreadable("a suite is written out in full; anchors and aliases are not used.")
            if tag := getattr(event, "tag", None):
                line = event.start_mark.line + 1 if event.start_mark else "?"
                raise Unreadable(f"line {line}: tags are not used. Found {tag!r}.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise Unreadable(NESTED)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise Unreadable(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise Unreadable(NESTED) from error


def is_mapping(node: Node | None) -> TypeGuard[yaml.MappingNode]:
    """Whether a node maps keys to values."""
    return isinstance(node, yaml.MappingNode)


def is_key(value: Any) -> bool:
    """Whether a value can be a key of a suite: one word without dots and brackets, which separate keys."""
    return isinstance(value, str) and value != "" and not set(value) & set(".[]")


def key_fault(node: Node) -> str | None:
    """Return why a node is not the text of a key, or None; YAML reads 1, yes and << as something else."""
    if not isinstance(node, yaml.ScalarNode):
        return "keys must be text."
    return None if node.tag == f"{_TAG}str" else f"keys must be text. Write {node.value} in quotes."


def line_of(node: Node) -> int:
    """Return the line of a node, from 1."""
    return node.start_mark.line + 1


def entries_of(node: Node) -> list[Node]:
    """Return the entries of a list; empty for anything else."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def value_of(node: Node | None, *, text: bool = False) -> Any:
    """Return the value of a node.

    Args:
        node: None stands for an empty value.
        text: Whether text is wanted: a number, a date or a truth value without quotes is then taken as it is written.

    Raises:
        Unreadable: If the value has a type that suites do not use, or YAML would read something else than is written.
    """
    if node is None:
        return None
    if text and isinstance(node, yaml.ScalarNode) and node.tag in _WORDS:
        return node.value
    for fault in _faults(node):
        raise Unreadable(fault)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise Unreadable(str(error) or type(error).__name__) from error
    finally:
        loader.dispose()


def value_fault(value: Any, *, finite: bool = False) -> str | None:
    """Return why a value cannot stand in a suite, or None if it can.

    Args:
        value: Anything that `value_of` returns.
        finite: Whether the value itself must be finite; numbers within lists and mappings always must.
    """
    if isinstance(value, dict):
        return next((fault for item in (*value, *value.values()) if (fault := value_fault(item, finite=True))), None)
    if isinstance(value, list):
        return next((fault for item in value if (fault := value_fault(item, finite=True))), None)
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, int) and value.bit_length() > 4000:
        return "a number of thousands of digits."
    if isinstance(value, float) and finite and not math.isfinite(value):
        return f"numbers must be finite. Found {value}."
    return None


def _text_fault(text: str) -> str | None:
    if "${" in text:
        return "${...} is not expanded. Write the value out."
    if text == "???":
        return "??? stands for a value that is missing. Write the value out."
    if found := UNSAFE.search(text):
        return f"text must not hold control characters. Found {found[0]!r}."
    return None


def _faults(node: Node) -> Iterator[str]:
    """Yield what `yaml` would accept although the result is not what is written."""
    if node.tag == f"{_TAG}timestamp":
        yield f"a suite has no dates. Write {node.value} in quotes."
    elif isinstance(node, yaml.ScalarNode):
        if node.tag in _WORDS and _MISLEADING.fullmatch(node.value):
            yield f"{node.value} is another number in YAML. Write it in base ten without a leading zero, or in quotes."
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _faults(item)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if fault := key_fault(key):
                yield fault
                return
            if key.value in seen:
                yield f"{key.value} is given twice."
            seen.add(key.value)
            yield from _faults(value)
