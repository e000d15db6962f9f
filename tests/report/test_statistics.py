"""Statistics over seeds against numbers worked out by hand and from printed t tables."""

from __future__ import annotations

import math

import pytest

from mtlbench.report.statistics import estimate, holm, paired


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
