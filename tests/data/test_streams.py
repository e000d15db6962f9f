"""Streams with sizes and rates of their own: rules of mixing by hand, and which samples a step sees on which rank."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from mtlbench.data.mixing import Gradient, Proportional, Score, Temperature, Uniform, draw, read_mixing
from mtlbench.data.streams import Fixed, Mixed, StreamBatches
from mtlbench.errors import SuiteError

LENGTHS = {"large": 10_000, "small": 300}
SIZES = list(LENGTHS.values())


def mixed(rule: Any, steps: int = 4000, count: int = 1, **changes: Any) -> Mixed:
    return Mixed(rule, list(LENGTHS), SIZES, 8, count, steps, 0, **changes)


def test_probabilities_by_hand() -> None:
    assert Uniform().probabilities([9, 1], 0).tolist() == [0.5, 0.5]
    assert Proportional().probabilities([9, 1], 0.7).tolist() == [0.9, 0.1]
    assert Temperature(2.0).probabilities([9, 1], 0) == pytest.approx([0.75, 0.25])
    annealed = Temperature(1.0, end=3.0)
    assert annealed.probabilities([9, 1], 0.5) == pytest.approx([0.75, 0.25])
    assert Temperature(1e9).probabilities([9, 1], 0) == pytest.approx([0.5, 0.5])


def test_streams_with_a_low_score_are_drawn_more_often() -> None:
    sharp = Score(uniform=0.0, smooth=0.0)
    assert sharp.probabilities(SIZES, 0) == pytest.approx([0.5, 0.5]), "uniform before the first evaluation"
    assert sharp.probabilities(SIZES, 0, [(0.9, 0.5)]) == pytest.approx([1 / 6, 5 / 6])
    assert sharp.probabilities(SIZES, 0, [(1.0, 1.0)]) == pytest.approx([0.5, 0.5])
    assert Score(uniform=1.0).probabilities(SIZES, 0, [(0.9, 0.5)]) == pytest.approx([0.5, 0.5])
    assert Score(uniform=0.0, power=2.0, smooth=0.0).probabilities(SIZES, 0, [(0.9, 0.5)]) == pytest.approx(
        [1 / 26, 25 / 26]
    )
    # β = 1/2 from uniform: 1/2 · 1/2 + 1/2 · 1/6, then once more.
    smooth = Score(uniform=0.0, smooth=0.5)
    assert smooth.probabilities(SIZES, 0, [(0.9, 0.5)])[0] == pytest.approx(1 / 3)
    assert smooth.probabilities(SIZES, 0, [(0.9, 0.5)] * 2)[0] == pytest.approx(1 / 4)


def test_streams_with_large_and_clean_gradients_are_drawn_more_often() -> None:
    rule = Gradient(size=0.1, noise=0.05, uniform=0.0)
    assert rule.probabilities(SIZES, 0) == pytest.approx([0.5, 0.5]), "uniform before the first evaluation"
    found = [(1.0, 2.0), (4.0, 2.0)]
    assert rule.probabilities(SIZES, 0, [found]) == pytest.approx([0.425557, 0.574443], abs=1e-6)
    twice = np.array([0.425557, 0.574443]) ** 2
    assert rule.probabilities(SIZES, 0, [found] * 2) == pytest.approx(twice / twice.sum(), abs=1e-6)
    assert rule.probabilities(SIZES, 0, [[(1.0, 9.0), (1.0, 2.0)]])[0] < 0.5, "noise counts against a stream"
    assert Gradient(uniform=0.5).probabilities(SIZES, 0, [[(1e6, 0.0), (0.0, 0.0)]]) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("rule", [Uniform(), Proportional(), Temperature(3.0), Temperature(1.0, end=5.0)])
def test_streams_are_drawn_as_often_as_the_rule_says(rule: Any) -> None:
    schedule = mixed(rule)
    drawn = Counter(name for step in range(schedule.steps) for name, _ in schedule.slots(step))
    expected = sum(schedule.probabilities(step) for step in range(schedule.steps))
    assert chisquare([drawn[name] for name in LENGTHS], expected).pvalue > 1e-3
    other = draw(np.array([0.5, 0.5]), 0, 0, 100), draw(np.array([0.5, 0.5]), 0, 1, 100)
    assert other[0] != other[1], "steps draw anew"


def keys(schedule: Any, **options: Any) -> list[Any]:
    steps = options.pop("steps", 40)
    return list(StreamBatches(schedule, options.pop("lengths", LENGTHS), steps, 0, **options))


@pytest.mark.parametrize(
    "schedule", [mixed(Uniform(), count=2), Fixed({"large": 12, "small": 4}, {"large": 1, "small": 3})]
)
def test_ranks_and_micro_batches_divide_the_samples_of_a_step(schedule: Any) -> None:
    whole = keys(schedule)
    ranks = [keys(schedule, micro=2, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [ranks[rank][2 * step + part] for rank in range(2) for part in range(2)]
        assert sorted(sum(parts, [])) == sorted(batch) and len({len(part) for part in parts}) == 1
        assert len({tuple(sorted({name for name, _, _ in part})) for part in parts}) == 1, "all see the same streams"


def test_a_resumed_run_sees_the_rest() -> None:
    schedule = mixed(Temperature(4.0), count=2)
    assert keys(schedule, start=17) == keys(schedule)[17:]


def test_every_stream_has_an_order_of_its_own_for_every_pass() -> None:
    schedule = Fixed({"large": 5, "small": 3}, {"large": 1, "small": 1})
    lengths = {"large": 20, "small": 7}
    seen: dict[Any, list[int]] = {}
    for batch in keys(schedule, lengths=lengths, steps=12):
        for name, epoch, index in batch:
            seen.setdefault((name, epoch), []).append(index)
    assert {key: len(found) for key, found in seen.items() if key[0] == "small"} == {("small", e): 6 for e in range(6)}
    for (name, epoch), found in seen.items():
        assert len(set(found)) == len(found), "no sample twice in one pass"
        assert seen.get((name, epoch + 1), [None]) != found
    assert sorted(seen["large", 0]) == list(range(20))


def test_a_stream_takes_part_in_every_third_step() -> None:
    found = keys(Fixed({"large": 2, "small": 2}, {"large": 1, "small": 3}), steps=7)
    assert [len({name for name, _, _ in batch}) for batch in found] == [2, 1, 1, 2, 1, 1, 2]


def test_scores_change_what_later_steps_draw() -> None:
    later = mixed(Score(uniform=0.0, smooth=0.0, least=1e-9), history=lambda step: [(1.0, 0.0)] if step >= 20 else [])
    found = [{name for name, _, _ in batch} for batch in keys(later)]
    assert {"large"} in found[:20] and all(names == {"small"} for names in found[20:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("uniforn", "rule of mixing 'uniforn'.*uniform"),
        ({"rule": "score", "powr": 1}, "'powr'.*power"),
        ({"rule": "proportional", "temperature": 2}, "'temperature'"),
        ({"rule": "temperature", "temperature": 0.5}, "at least 1 and finite. Found 0.5"),
        ({"rule": "score", "smooth": 1}, "0 <= smooth < 1"),
        ({"rule": "temperature", "temperature": "hot"}, "is a number. Found 'hot'"),
        ({"rule": "gradient", "noise": -1}, "noise >= 0"),
        (3, "rule of mixing 'None'"),
    ],
)
def test_rules_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_mixing(given)


def test_slots_that_do_not_divide_or_are_too_large() -> None:
    with pytest.raises(SuiteError, match="large gives 8, for 3 device"):
        StreamBatches(mixed(Uniform()), LENGTHS, 1, 0, world=3)
    with pytest.raises(SuiteError, match="small has 7 training samples, and a step takes 8"):
        StreamBatches(mixed(Uniform()), {"large": 100, "small": 7}, 1, 0)
