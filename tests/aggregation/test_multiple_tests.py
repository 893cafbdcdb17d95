import itertools

import numpy as np
import pytest
from scipy import stats

from dpsapf.aggregation.multiple_tests import LEVEL, half_width, holm, p_value

DRAWS = [np.random.default_rng(seed).uniform(0, 0.2, size) for seed, size in enumerate((1, 2, 3, 5, 7))]
TIES = [[0.01, 0.01, 0.04], [0.0, 0.0, 0.5], [1.0, 1.0], [0.03, 0.02, 0.01, 0.04]]


def closed_test(p):
    """Holm's correction as what it is: the closed test of Bonferroni's, over every subset that has the hypothesis."""
    members = range(len(p))
    subsets = [set(some) for size in range(1, len(p) + 1) for some in itertools.combinations(members, size)]
    return [max(min(1, len(some) * min(p[i] for i in some)) for some in subsets if index in some) for index in members]


@pytest.mark.parametrize("p", [*DRAWS, *TIES])
def test_holm_is_the_closed_test_of_bonferroni(p):
    np.testing.assert_allclose(holm(p).p, closed_test(list(p)))


def test_what_was_not_tested_is_not_of_the_family():
    corrected = holm([np.nan, 0.02, 0.04, np.nan])
    np.testing.assert_allclose(corrected.p, [np.nan, 0.04, 0.04, np.nan])
    assert np.isnan(corrected.levels[[0, 3]]).all()
    assert len(holm([]).p) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_corrected_interval_excludes_zero_exactly_where_the_corrected_p_decides(seed):
    draws = np.random.default_rng(seed).normal(1, 1.2, (8, 4))
    means, sds = draws.mean(axis=1), draws.std(axis=1, ddof=1)
    corrected = holm([p_value(mean, sd, 4) for mean, sd in zip(means, sds, strict=True)])
    halves = np.array([half_width(sd, 4, level) for sd, level in zip(sds, corrected.levels, strict=True)])
    np.testing.assert_array_equal(abs(means) > halves, corrected.p <= LEVEL)
    assert (halves >= [half_width(sd, 4) for sd in sds]).all(), "no corrected interval is narrower than the plain one"


def test_a_family_of_true_nulls_is_rejected_in_five_of_a_hundred():
    rejected = [(holm(p).p <= LEVEL).any() for p in np.random.default_rng(0).uniform(size=(4000, 6))]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.014)  # four standard errors


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_p_value_and_interval_are_scipys(bound):
    values = np.random.default_rng(3).normal(0.5, 1, 5)
    test = stats.ttest_1samp(values, bound)
    assert p_value(values.mean(), values.std(ddof=1), 5, bound) == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert half_width(values.std(ddof=1), 5) == pytest.approx((interval.high - interval.low) / 2)


def test_few_values_and_no_spread():
    assert np.isnan(p_value(1.0, np.nan, 1)) and np.isnan(half_width(np.nan, 1))
    assert p_value(1.0, 0.0, 3) == 0 and p_value(0.0, 0.0, 3) == 1
