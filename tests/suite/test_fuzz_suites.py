"""Shipped suites with values, keys and text that nobody meant: each is refused with a message, or is what was written.

``MTLBENCH_FUZZ=5000`` tries that many inputs instead of 500.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from mtlbench import suite as suites
from mtlbench.errors import ExitCode, MtlbenchError
from mtlbench.study.validation import examine
from mtlbench.suite.reader import Reading
from tests.support.command_line import mtlbench

INPUTS = int(os.environ.get("MTLBENCH_FUZZ", "300"))
FOLDER = Path(__file__).resolve().parents[2] / "experiments"
WHOLE = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
SAFE = settings(
    max_examples=INPUTS // 2,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # Shrinking takes minutes where one input takes milliseconds.
    report_multiple_bugs=False,
)

WORDS = (
    "", "???", "${x}", "../x", "a.b", "a[0]", "\x1b[31m", "\u202e", "yes", "null", "~", "1e3", "0x1f", "010", "1:30",
    "timm", "2020-01-01", "os:system", ":", "a:", "x" * 5000, "single_task", "uniform", "famo", "．５", "ﬁ",
)  # fmt: skip
CHARACTERS = st.characters(exclude_categories=["Cs"])  # Any but surrogates; the default tries to encode all of them.
TEXT = st.text(CHARACTERS, max_size=8) | st.sampled_from(WORDS)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**31, 2**63, 10**30, 10**400, -(10**400), 1e308, 1e-320, -0.0, 0.5, 1.5]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
METHODS = st.dictionaries(
    st.sampled_from(["name", "label", "model", "balancer", "lr", "rank", "alpha", "spec", "self", "weights"]),
    st.one_of(
        SCALARS, st.dictionaries(st.sampled_from(["name", "encoder", "decoder_channels", "weights", "x"]), VALUES)
    ),
    max_size=4,
)
YAML = (
    "&a [1]", "[*a]", "&a {b: *a}", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2020-01-01",
    "!x 1", "!!int ''", "!!bool maybe", "!!float x", "!!python/object/apply:os.system [x]", "{a: 1, a: 2}",
    "{1: 2}", "{[a]: 1}", "{<<: {a: 1}}", "[" * 50, "[" * 50 + "]" * 50, "'", '"', "|", "> x", "%", "@", "`",
    "- a\n- b", "a: b: c", "\ttab", "1_000", "0b11", "0o17", "012", "1:30", "+.inf", ".NaN", "9" * 5000,
    "0x" + "f" * 5000, "# nothing", "--- 1\n--- 2", '"\\ud800"', '"\\x00"', '"\\e[2J"', "2020-01-01",
    "12:30:45", "y", "on", "No", "2", "0.5", "[3]", "{}", "true",
)  # fmt: skip
RAW = st.text(CHARACTERS, max_size=20) | st.sampled_from(YAML)
"""YAML as text."""


def keys_of(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Returns the keys of a suite, sections included."""
    found = [above] if above else []
    for key, item in value.items() if isinstance(value, dict) else ():
        found += keys_of(item, (*above, str(key)))
    return found


SECTIONS = {
    "data": suites.DataSection,
    "model": suites.ModelSection,
    "optimiser": suites.OptimiserSection,
    "trainer": suites.TrainerSection,
}
KEYS = {key for whole in WHOLE.values() for key in keys_of(whole)}
KEYS |= {(field.name,) for field in dataclasses.fields(suites.Suite)}
KEYS |= {(name, field.name) for name, cls in SECTIONS.items() for field in dataclasses.fields(cls)}
KEYS |= {("tasks", "left", "scale"), ("tasks", "left", "optional"), ("data", "options", "train"), ("scenario", "kind")}
PLACES = st.one_of(
    st.sampled_from(sorted(KEYS)), st.tuples(TEXT), st.tuples(st.sampled_from([*SECTIONS, "tasks", "scenario"]), TEXT)
)


def put(whole: dict[str, Any], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Returns a suite with another value at a key; sections that are absent are added."""
    copy: dict[str, Any] = deepcopy(whole)
    at = copy
    for part in key[:-1]:
        at = at.setdefault(part, {}) if isinstance(at.get(part), (dict, type(None))) else {}
    at[key[-1]] = value
    return copy


def at(suite: Any, key: tuple[str, ...]) -> Any:
    """Returns what a suite holds at a key."""
    for part in key:
        suite = suite[part] if isinstance(suite, dict) else getattr(suite, part)
    return suite


def same(accepted: Any, written: Any) -> bool:
    """Whether an accepted value is what was written; text may stand for a number, and for text a number as written."""
    if isinstance(accepted, dict) and isinstance(written, dict):
        return all(key in accepted and same(accepted[key], value) for key, value in written.items())
    if dataclasses.is_dataclass(accepted) and isinstance(written, dict):
        return all(same(getattr(accepted, key), value) for key, value in written.items())
    if isinstance(accepted, dict) and isinstance(written, list):  # of tasks
        return list(accepted) == written
    if isinstance(accepted, list) and isinstance(written, list):
        return len(accepted) == len(written) and all(map(same, accepted, written))
    if isinstance(accepted, bool) or isinstance(written, bool):
        words = {
            "yes": True,
            "on": True,
            "true": True,
            "y": True,
            "no": False,
            "off": False,
            "false": False,
            "n": False,
        }
        return accepted == (words.get(written.lower(), written) if isinstance(written, str) else written)
    if isinstance(accepted, (int, float)) and isinstance(written, str):
        return accepted == type(accepted)(written)
    if isinstance(accepted, str) and isinstance(written, (int, float)):
        return accepted == yaml.safe_dump(written).split("\n")[0]
    return (
        type(accepted) is type(written) and accepted == written or accepted == written and not isinstance(accepted, str)
    )


def no_search(key: tuple[str, ...], written: Any, accepted: Any) -> bool:
    """Whether no search was written: ``search`` may be nothing, none, or none with a remark."""
    return key == ("search",) and str(written or "none").strip().startswith("none") and accepted.trials == 0


def refusals(found: Reading) -> list[str]:
    """Returns the faults of a suite, those of what it names included."""
    more = examine(found.suite, 1, found.place).faults if found.suite and not found.faults else []
    return [*found.faults, *more]


def assert_sound(found: Reading) -> None:
    """Asserts that a suite was refused, each time with its place, or lies in the ranges of the schema."""
    try:
        faults = refusals(found)
    except MtlbenchError as error:
        raise AssertionError(f"a fault without its place: {error}") from error
    if found.suite is None or faults:
        assert faults and all(len(fault) < 4000 for fault in faults), faults
        assert all(fault.startswith((str(found.path), "override ")) for fault in faults), faults
        return
    for section in (
        found.suite,
        found.suite.model,
        found.suite.optimiser,
        found.suite.trainer,
        *found.suite.tasks.values(),
    ):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            for number in value if isinstance(value, list) else [value]:
                if "range" in field.metadata and number is not None:
                    assert number in field.metadata["range"] and math.isfinite(number), field.name
    assert len(found.suite.model.image_size) in (0, 2), "inputs other than images have none"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suites")


@SAFE
@given(name=st.sampled_from(sorted(WHOLE)), key=PLACES, value=VALUES, methods=METHODS | st.none())
def test_a_changed_file_is_refused_or_is_what_was_written(
    folder: Path, name: str, key: tuple[str, ...], value: Any, methods: Any
) -> None:
    path = folder / "mine.yaml"
    whole = put(WHOLE[name], key, value)
    if methods is not None:
        whole = {**whole, "methods": ["uniform", methods]}
    path.write_text(yaml.safe_dump(whole, allow_unicode=random.Random(str(value)).random() < 0.5), encoding="utf-8")
    found = suites.read(str(path))
    assert_sound(found)
    if found.suite and not found.faults and methods is None and key != ("methods",):
        accepted = at(found.suite, key)
        assert same(accepted, value) or no_search(key, value, accepted), (key, value, accepted)


@SAFE
@example(name="scenes", key=("search",), text="")
@example(name="digits", key=("scenario", ".x"), text="1")
@example(name="digits", key=("scenario",), text="{<<: {a: 1}}")
@example(name="scenes", key=("data", "root"), text="9" * 5000)
@given(name=st.sampled_from(["digits", "scenes"]), key=PLACES, text=RAW)
def test_a_change_as_text_is_refused_or_is_what_was_written(name: str, key: tuple[str, ...], text: str) -> None:
    key = tuple(".".join(key).split("."))
    found = suites.read(name, [f"{'.'.join(key)}={text}"])
    assert_sound(found)
    if found.suite and not found.faults and key != ("methods",) and "=" not in "".join(key):
        accepted = at(found.suite, key)
        if accepted != text.strip():  # Text is taken as it is written, also where YAML cannot read it.
            value = yaml.safe_load(text)
            assert same(accepted, value) or no_search(key, value, accepted), (key, text, accepted)


@pytest.mark.parametrize("part", range(4))
def test_the_command_ends_with_a_documented_code(part: int, tmp_path: Path) -> None:
    """The same changes through `bench --dry`, which also builds data, methods and plans."""
    draw = random.Random(part)
    keys = [*(key for key in sorted(KEYS) if key[0] != "model"), ("methods",)]
    texts = [
        "-1",
        "0",
        "nan",
        "[]",
        "{}",
        "x",
        "null",
        "[1, 2]",
        "{a: 1}",
        "true",
        "1e400",
        '"\\e"',
        "1",
        "'1'",
        "best",
    ]
    for _ in range(max(3, INPUTS // 100)):
        change = f"{'.'.join(draw.choice(keys))}={draw.choice(texts)}"
        answer = mtlbench(tmp_path, "bench", "digits", "--dry", "methods=[uniform, pcgrad]", change)
        assert "Traceback" not in answer.text, (change, answer.text)
        assert answer.code in (ExitCode.DONE, ExitCode.REFUSED), (change, answer.text)
        assert (answer.code == ExitCode.REFUSED) == ("mtlbench: " in answer.text), (change, answer.text)
