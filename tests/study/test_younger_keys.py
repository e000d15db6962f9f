"""Keys that came after runs had been stored leave the identity of those runs alone."""

from __future__ import annotations

import pytest

from mtlbench import cli
from mtlbench.cli.arguments import read_request
from mtlbench.runs.spec import RunSpec
from mtlbench.study.resolve import resolve
from mtlbench.suite.schema import YOUNGER


def first(*overrides: str) -> RunSpec:
    asked = read_request(cli._parse(["bench", "scenes_scratch", "--methods", "uniform", *overrides]))
    return resolve(asked.suite, asked.local, asked.overrides, asked.place).members[0]


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [("model.upsampling=learned", "model", "learned"), ("optimiser.encoder_rate=0.5", "optimiser", 0.5)],
)
def test_a_younger_key_is_identity_only_where_it_is_used(override: str, section: str, value: object) -> None:
    plain, changed = first(), first(override)
    key = override.split("=")[0].split(".")[1]
    assert key in YOUNGER and key not in plain.identity()[section]
    assert changed.identity()[section] == {**plain.identity()[section], key: value}
    assert changed.hash != plain.hash
