import math

import numpy as np
import pytest
from scipy import stats

from dpsapf.aggregation.welch import MOST, against_number, seeds_needed, welch

DRAWS = [np.random.default_rng(seed).normal(0.5, 1 + seed, 3 + 2 * seed) for seed in range(3)]


@pytest.mark.parametrize("ours", DRAWS)
@pytest.mark.parametrize("theirs", DRAWS)
def test_tests_and_interval_are_scipys(ours, theirs):
    difference, test = welch(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert difference.two_sided() == pytest.approx(test.pvalue)
    assert difference.half_width(0.05) == pytest.approx((interval.high - interval.low) / 2)
    for bound in (-0.3, 0.0, 1.0):
        one_sided = [
            stats.ttest_ind(ours - bound, theirs, equal_var=False, alternative=name).pvalue for name in ("greater", "less")
        ]
        assert [difference.above(bound), difference.below(bound)] == pytest.approx(one_sided)


@pytest.mark.parametrize("ours", DRAWS)
def test_against_a_number_it_is_students_test(ours):
    test = stats.ttest_1samp(ours, 0.7)
    assert against_number(ours, 0.7).two_sided() == pytest.approx(test.pvalue)


@pytest.mark.parametrize("sides", [((1.0,), (1.0, 2.0)), ((1.0, 2.0), (1.0,)), ((1.0,), (2.0,))])
def test_a_single_value_has_no_error(sides):
    difference = welch(*sides)
    assert all(map(math.isnan, (difference.above(0), difference.below(0), difference.two_sided(), difference.half_width(0.05))))
    assert seeds_needed(difference.spread, [1.0], 0.05) == math.inf


def test_without_a_spread_the_difference_is_certain():
    difference = welch((2.0, 2.0), (1.0, 1.0))
    assert (difference.above(0), difference.below(0), difference.half_width(0.05)) == (0, 1, 0)
    assert welch((1.0, 1.0), (1.0, 1.0)).two_sided() == 1


@pytest.mark.parametrize("gaps", [[1.0], [1.0, 1.0], [0.5, 3.0]])
def test_seeds_needed_are_the_fewest_that_show_it_in_eighty_of_a_hundred(gaps):
    needed = seeds_needed(2.0, gaps, 0.05)
    draws = np.random.default_rng(0)

    def shown(seeds):
        mean = draws.normal(0, 2.0 / math.sqrt(seeds), 40_000)
        error = 2.0 / math.sqrt(seeds) * np.sqrt(draws.chisquare(2 * (seeds - 1), 40_000) / (2 * (seeds - 1)))
        critical = stats.t.isf(0.05, 2 * (seeds - 1))
        return np.mean(
            [
                all(gap + side * m > critical * e for gap, side in zip(gaps, (1, -1), strict=False))
                for m, e in zip(mean, error, strict=True)
            ]
        )

    # four standard errors of a share of 0.8 among 40,000 studies are 0.008
    assert shown(needed) > 0.8 - 0.008 and shown(needed - 1) < 0.8 + 0.008


def test_more_seeds_than_are_worth_naming_are_infinitely_many():
    assert seeds_needed(100.0, [0.1], 0.05) == math.inf
    assert seeds_needed(0.0, [0.1], 0.05) == 2 < MOST
