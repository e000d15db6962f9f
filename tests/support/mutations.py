"""Damage to a JSON file, drawn by hypothesis: torn bytes, wrong types, missing keys, deep nesting, huge numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

DEEP: Any = 1
for _ in range(150):
    DEEP = [DEEP]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 10**400, 2.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "\0", "\ud800", "../../x", "/etc", "\x1b[2J", "[/x]", "<b>", "=1+1", "a" * 5000, "1e999"),
    *([], {}, [None], [[]], {"": {}}, [1, "x"], {"x": 1}, DEEP),
)
"""Values that a record may hold in the place of any other."""

RAW = (b"", b"{", b"[]", b"null", b"\0" * 40, b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 5000, b"1" * 5000, b"NaN")
"""Contents that are no record at all."""

Path = tuple[Any, ...]


def places(value: Any, here: Path = ()) -> Iterator[Path]:
    """Yields the place of every value within a value, itself first."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*here, key))


def damaged_record(draw: Callable[..., Any], record: Any) -> Any:
    """Returns a copy of a record with one to three changes."""
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from([place for place in places(record) if place] or [()]))
        if not where:
            return copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        owner = record
        for key in where[:-1]:
            owner = owner[key]
        _change(draw, owner, where[-1])
    return record


def _change(draw: Callable[..., Any], owner: Any, key: Any) -> None:
    kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "repeat", "nudge")))
    if kind == "remove":
        del owner[key]
    elif kind == "rename" and isinstance(owner, dict):
        owner[draw(st.sampled_from(("x", "", "digest", "files", "\x1b", "a" * 200)))] = owner.pop(key)
    elif kind == "repeat" and isinstance(owner, list):
        owner.append(owner[key])
    elif kind == "nudge" and isinstance(owner[key], (int, float)) and abs(owner[key]) < 1e300:
        owner[key] = owner[key] + draw(st.sampled_from((1, -1, 0.125, 1e-9)))
    else:
        owner[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))  # A later change must not reach `HOSTILE`.


def damaged_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """Returns other bytes: none of the content, half of it, or all but one bit."""
    kind = draw(st.sampled_from(("raw", "torn", "flip", "flip", "noise")))
    if kind == "raw" or not content:
        return draw(st.sampled_from(RAW))
    at = draw(st.integers(0, len(content) - 1))
    if kind == "torn":
        return content[:at]
    if kind == "noise":
        return content[:at] + draw(st.binary(max_size=20)) + content[at:]
    flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
    return content[:at] + bytes([flipped]) + content[at + 1 :]
