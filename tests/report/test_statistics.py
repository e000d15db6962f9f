"""Statistics over seeds against numbers worked out by hand and from printed t tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mtlbench.report.model import NamedPair
from mtlbench.report.statistics import ALPHA, detectable, estimate, holm, paired, seeds_to_detect


def test_interval_of_three_values():
    # mean 2, std 1; t(0.975, 2) = 4.30265; half = 4.30265 / sqrt(3) = 2.48414
    result = estimate([1.0, 2.0, 3.0])
    assert (result.mean, result.std, result.n) == (2.0, 1.0, 3)
    assert result.low == pytest.approx(2 - 2.48414, abs=1e-5)
    assert result.high == pytest.approx(2 + 2.48414, abs=1e-5)


def test_one_value_has_no_spread():
    result = estimate([0.4])
    assert (result.mean, result.n, result.std, result.low, result.high) == (0.4, 1, None, None, None)


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_paired_uses_common_seeds_only():
    # Seeds 0 and 1 differ by 1 and 3: mean 2, std sqrt(2), t = 2; one degree of freedom: p = 1 - 2 atan(2) / pi.
    result = paired({0: 2.0, 1: 5.0, 7: 9.0}, {0: 1.0, 1: 2.0, 8: 0.0})
    assert result is not None
    assert (result.estimate.mean, result.estimate.n) == (2.0, 2)
    assert result.p == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert result.significant is False


def test_p_value_agrees_with_scipy_stats():
    from scipy import stats

    a, b = [0.41, 0.44, 0.43, 0.47], [0.40, 0.41, 0.43, 0.42]
    result = paired(dict(enumerate(a)), dict(enumerate(b)))
    reference = stats.ttest_rel(a, b)
    assert result is not None and result.p == pytest.approx(reference.pvalue)
    assert (result.estimate.low, result.estimate.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


@pytest.mark.parametrize(("a", "b", "p"), [({0: 1, 1: 1}, {0: 1, 1: 1}, 1.0), ({0: 2, 1: 2}, {0: 1, 1: 1}, 0.0)])
def test_differences_without_spread(a, b, p):
    assert paired(a, b).p == p


def test_paired_without_or_with_one_common_seed():
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({0: 1.0}, {0: 0.5})
    assert alone is not None and alone.p is None and alone.significant is None


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_detectable_difference_has_the_power_that_it_claims():
    # Figures of G*Power for a paired t test, two-sided, alpha 0.05, power 0.8.
    known = {5: 1.6819, 10: 0.9964, 20: 0.6604}
    assert {n: detectable(1.0, n) for n in known} == pytest.approx(known, rel=2e-3)
    assert detectable(2.5, 5) == pytest.approx(2.5 * detectable(1.0, 5))
    assert seeds_to_detect(1.0, 1.0) == 10 and seeds_to_detect(1.0, 0.1) is None and seeds_to_detect(0.0, 1.0) == 2
    draws = np.random.default_rng(0).normal(detectable(1.0, 4), 1.0, (20_000, 4))
    found = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.015)


def test_looks_keep_the_error_of_a_null_study_under_five_per_cent():
    # 10,000 studies without any difference are looked at with 3, 5 and 9 seeds; each stops at a significant look.
    draws = np.random.default_rng(1).normal(size=(10_000, 9))
    naive, corrected = np.zeros(10_000, bool), np.zeros(10_000, bool)
    for look, seeds in enumerate((3, 5, 9), start=1):
        p = stats.ttest_1samp(draws[:, :seeds], 0, axis=1).pvalue
        pair = NamedPair("a", "b", True, "", looks=look)
        naive |= p < ALPHA
        corrected |= np.array([pair.adjusted(value) for value in p]) < ALPHA
    assert naive.mean() > 0.09, "without the correction, three looks err about twice as often as claimed"
    assert corrected.mean() <= 0.05
