import math

import numpy as np
import pytest
from scipy import stats

from paper_figures.collapse import Bound, edge, excess, factor, log_mean


def test_without_spread_fids_are_compared_as_they_are():
    assert excess([4.1], [4.0]) == pytest.approx(math.log(4.1 / 4.0))
    assert excess([4.0], [4.0]) == 0, "as bad as the floor is no collapse"


def test_a_collapse_exceeds_two_standard_errors_of_the_difference():
    fid, floor = [4.0, 5.0, 6.0], [3.9, 4.1]
    by_hand = 2 * math.sqrt(np.var(np.log(fid), ddof=1) / 3 + np.var(np.log(floor), ddof=1) / 2)
    assert excess(fid, floor) == pytest.approx(np.mean(np.log(fid)) - np.mean(np.log(floor)) - by_hand)
    assert excess(fid, floor) < 0 < excess([4.8, 5.0, 5.2], floor)


def test_one_seed_has_the_spread_of_the_floor_alone():
    floor = [3.0, 4.0, 5.0]
    limit = np.mean(np.log(floor)) + 2 * np.std(np.log(floor), ddof=1) / math.sqrt(3)
    assert excess([math.exp(limit)], floor) == pytest.approx(0, abs=1e-12)


def test_seeds_that_all_collapsed_far_have_collapsed_however_far_apart():
    fid, floor = np.array([30.0, 50.0, 200.0]), np.array([3.9, 4.0, 4.1])
    plain = fid.mean() - floor.mean() - 2 * math.sqrt(fid.var(ddof=1) / 3 + floor.var(ddof=1) / 3)
    assert plain < 0 < excess(fid, floor), "why spreads are of log FID"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_the_edge_is_where_log_fid_meets_the_limit(order):
    rates, excesses = np.array([0.01, 0.1, 1.0, 10.0]), np.array([-1.0, -0.5, 1.5, 3.0])
    found = edge(rates[list(order)], excesses[list(order)])
    assert found == Bound(pytest.approx(0.1 * 10**0.25), "")


def test_a_known_collapse_is_found_where_it_is():
    rates = np.geomspace(0.01, 1, 9)
    fid = 4.0 * (rates / 0.2) ** 1.7
    assert edge(rates, [excess([value], [4.0]) for value in fid]).value == pytest.approx(0.2)


def test_once_collapsed_stays_collapsed():
    assert edge([1, 2, 4, 8], [-1.0, 1.0, -5.0, 1.0]) == Bound(pytest.approx(2**0.5), "")


def test_an_edge_beyond_the_rates_is_a_bound():
    assert edge([1, 2, 4], [-1.0, 0.0, -0.1]) == Bound(4.0, ">")
    assert edge([1, 2, 4], [0.1, -1.0, -1.0]) == Bound(1.0, "<")
    assert edge([3], [-1.0]) == Bound(3.0, ">")


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [("", "", ""), (">", "", ">"), ("", ">", "<"), ("<", "", "<"), ("", "<", ">"), (">", "<", ">"), ("<", ">", "<")],
)
def test_factors_of_bounds_are_bounds(one, other, sign):
    assert factor(Bound(6.0, one), Bound(2.0, other)) == Bound(3.0, sign)


@pytest.mark.parametrize("sign", ["<", ">"])
def test_a_factor_of_bounds_on_the_same_side_is_unknown(sign):
    found = factor(Bound(6.0, sign), Bound(2.0, sign))
    assert math.isnan(found.value) and found.sign == "?"


def test_a_mean_over_seeds_is_geometric_with_a_t_interval():
    found = log_mean([Bound(1.0), Bound(2.0), Bound(8.0)])
    interval = stats.ttest_1samp(np.log([1, 2, 8]), 0).confidence_interval(0.95)
    assert (found.mean, found.sign, found.seeds) == (pytest.approx(16 ** (1 / 3)), "", 3)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(interval)))


def test_a_mean_with_bounds_is_a_bound_without_interval():
    found = log_mean([Bound(1.0), Bound(4.0, ">")])
    assert (found.mean, found.sign) == (pytest.approx(2.0), ">") and math.isnan(found.low) and math.isnan(found.high)
    unknown = log_mean([Bound(1.0, "<"), Bound(4.0, ">")])
    assert unknown.sign == "?" and math.isnan(unknown.mean)
    assert math.isnan(log_mean([Bound(1.0)]).low), "one seed has no interval"


def test_paired_factors_of_lognormal_edges_recover_the_truth():
    """A seed moves both edges alike: the interval of the paired factor holds the truth 95 times of 100, and is narrow."""
    generator, held, widths = np.random.default_rng(0), 0, []
    for _ in range(400):
        of_seed = generator.normal(0, 0.5, 5)
        ours, theirs = (np.exp(of_seed + generator.normal(0, 0.05, 5)) * scale for scale in (0.12, 0.04))
        found = log_mean([factor(Bound(one), Bound(other)) for one, other in zip(ours, theirs, strict=True)])
        held += found.low <= 3 <= found.high
        widths.append(math.log(found.high / found.low))
    assert 0.92 <= held / 400 <= 0.98
    assert np.mean(widths) < 0.25, "unpaired it would be above 1"
