"""The rule of mixing `active`: which source streams explain a target, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtlbench.data.mixing import Active, read_mixing, relevance
from mtlbench.errors import DivergedError, SuiteError

W = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
"""Heads of three sources, the columns of ((1, 0, 1), (0, 1, 1))."""
HEADS = {"a": W[0], "b": W[1], "c": W[2], "t": (1.0, 0.0)}
OWNER = {"t": "aim", "a": "one", "b": "two", "c": "three"}


def test_the_smallest_combination_of_heads_by_hand() -> None:
    found = relevance(W, (1.0, 0.0))
    assert found == pytest.approx([2 / 3, -1 / 3, 1 / 3])
    assert np.transpose(W) @ found == pytest.approx([1, 0])
    assert relevance([(2.0, 0.0, 0.0)], (3.0, 4.0, 0.0)) == pytest.approx([1.5]), "the closest, if none is equal"


def test_shares_by_hand() -> None:
    rule = Active("t", uniform=0.0)
    explained = rule.explained(OWNER, HEADS)
    assert explained == [None, pytest.approx(4 / 9), pytest.approx(1 / 9), pytest.approx(1 / 9)]
    p = rule.probabilities([9, 9, 9, 9], 0.5, [explained])
    assert p == pytest.approx([1 / 4, 3 / 4 * 2 / 3, 3 / 4 / 6, 3 / 4 / 6]) and p.sum() == pytest.approx(1)
    mixed = Active("t", uniform=0.3).probabilities([9, 9, 9, 9], 0.5, [[None, 1.0, 1.0, 1.0], explained])
    assert mixed == pytest.approx([1 / 4, 3 / 4 * (0.7 * 2 / 3 + 0.1), *[3 / 4 * (0.7 / 6 + 0.1)] * 2])
    assert rule.probabilities([9, 1, 1], 0) == pytest.approx([1 / 3] * 3), "uniform in the first round"
    assert rule.probabilities([9, 1, 1], 0, [[0.0, None, 0.0]]) == pytest.approx([1 / 3] * 3), "nothing is explained"


def test_tasks_of_one_stream_add_up_and_those_beside_the_target_do_not_count() -> None:
    joined = Active("t").explained({"a": "one", "b": "one", "t": "aim", "c": "two"}, HEADS)
    assert joined == [pytest.approx(5 / 9), None, pytest.approx(1 / 9)]
    beside = Active("t").explained({"a": "aim", "t": "aim", "b": "two", "c": "three"}, HEADS)
    assert beside == [None, pytest.approx(1.0), pytest.approx(1.0)], "(1, 0) = (1, 1) − (0, 1)"


def test_rounds_grow() -> None:
    rule = Active("t", rounds=4, growth=2.0)
    ends = [1 / 15, 3 / 15, 7 / 15]
    assert [rule.finished(end) for end in ends] == [1, 2, 3]
    assert [rule.finished(end - 1e-6) for end in ends] == [0, 1, 2] and rule.finished(1.0) == 3
    assert [Active("t", rounds=2, growth=1.0).finished(x) for x in (0.49, 0.5)] == [0, 1]
    assert Active("t", rounds=1).finished(1.0) == 0
    assert Active("t", rounds=1000, growth=1e9).finished(1e-6) == 999, "rounds may take no step"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "active", "target": 3}, "target of mixing by active is text. Found 3"),
        ({"rule": "active", "target": "t", "rounds": 0}, "rounds in 1..1000.*Found.*rounds=0"),
        ({"rule": "active", "target": "t", "rounds": 2.5}, "whole rounds"),
        ({"rule": "active", "target": "t", "growth": 0.5}, "growth >= 1"),
        ({"rule": "active", "target": "t", "samples": 1}, "samples >= 2"),
        ({"rule": "active", "aim": "t"}, "'aim'.*target"),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_mixing(given)


def test_a_target_without_sources_is_refused() -> None:
    with pytest.raises(SuiteError, match="target of mixing by active: Unknown task of the streams 's'. Known: a, t"):
        Active("s").check({"one": ["a"], "aim": ["t"]})
    with pytest.raises(SuiteError, match="t is in the only stream with tasks. Give it a stream of its own"):
        Active("t").check({"one": ["a", "t"], "none": []})
    Active("t").check({"one": ["a"], "aim": ["t"]})


def test_heads_that_cannot_be_combined() -> None:
    with pytest.raises(SuiteError, match="the target's length, 2. Found lengths \\[2, 3\\]. Measure all heads on one"):
        relevance([(1.0, 0.0), (1.0, 0.0, 0.0)], (1.0, 0.0))
    with pytest.raises(DivergedError, match="NaN"):
        relevance([(1.0, float("nan"))], (1.0, 0.0))
