"""The rule of the verdicts, on constructed comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from dpsapf.aggregation.multiple_tests import holm
from paper_figures import judging
from paper_figures.comparisons import Comparison
from paper_figures.judging import NOT_REPRODUCED, NOT_RUN, OPEN, REPRODUCED, UNDECIDED, Rule, entries, judge, verdict

HERE = {"dataset": "mnist5k", "public_model": "public-mini"}
MORE, LESS = Rule("ahead", 1, 2.0), Rule("ahead", -1, 2.0)
LEVEL = Rule("level", 1, 2.0)


def comparison(ours, theirs=(-0.5, 0.0, 0.5), **setting):
    return Comparison("one", "test-v1", HERE | setting, {}, np.array(ours, float), np.array(theirs, float))


def judged(*sides, rule=MORE):
    """Entries of comparisons that differ in their dataset."""
    return entries([judge(comparison(ours, dataset=str(place)), rule) for place, ours in enumerate(sides)])


@pytest.mark.parametrize(
    ("ours", "state"),
    [
        ((9, 10, 11), "ahead"),
        ((-9, -10, -11), "behind"),
        ((-0.1, 0, 0.1), "level"),
        ((1.0, 2.0, 3.0), UNDECIDED),  # at the margin
        ((-20, 0, 20), UNDECIDED),  # wide
        ((5,), UNDECIDED),  # one seed has no interval
    ],
)
def test_a_comparison_is_ahead_level_or_behind_by_the_margin(ours, state):
    theirs = (-0.1, 0.0, 0.1)
    assert judge(comparison(ours, theirs), MORE).state == state
    mirrored = judge(comparison(ours, theirs), LESS).state
    assert mirrored == {"ahead": "behind", "behind": "ahead"}.get(state, state), "less is better"


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_and_the_tests_are_welchs(seed):
    draws = np.random.default_rng(seed)
    ours, theirs = draws.normal(1, 3, 4 + seed), draws.normal(0, 0.5, 5)
    one = judge(comparison(ours, theirs), MORE)
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    shifted = stats.ttest_ind(ours - MORE.margin, theirs, equal_var=False, alternative="greater")
    assert one.supports == pytest.approx(shifted.pvalue)
    assert one.opposes == pytest.approx(1 - shifted.pvalue)


def test_level_is_two_one_sided_tests():
    draws = np.random.default_rng(0)
    ours, theirs = draws.normal(0.3, 0.8, 6), draws.normal(0, 0.8, 6)
    one = judge(comparison(ours, theirs), LEVEL)
    sides = {"greater": ours + LEVEL.margin, "less": ours - LEVEL.margin}
    ps = [stats.ttest_ind(side, theirs, equal_var=False, alternative=name).pvalue for name, side in sides.items()]
    assert one.supports == pytest.approx(max(ps))
    assert (one.state == "level") == (max(ps) <= 0.05)


@pytest.mark.parametrize("true", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("sizes", [(3, 3), (10, 3)])
def test_a_wrong_state_is_told_in_at_most_five_of_a_hundred_studies(true, sizes):
    """At the margin level and ahead are both wrong in part of the cases: each may be told in 5 of 100."""
    draws = np.random.default_rng(int(abs(true)) + sizes[0])
    states = [
        judge(comparison(true + draws.normal(0, 1, sizes[0]), draws.normal(0, 2, sizes[1])), LEVEL).state for _ in range(2000)
    ]
    wrong = {0.0: ("ahead", "behind"), 2.0: ("ahead",), -2.0: ("behind",)}[true]
    assert np.mean([state in wrong for state in states]) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)  # four standard errors
    level = np.mean([state == "level" for state in states])
    assert true == 0 or level <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("true", [0.0, 5.0, -5.0])
def test_every_state_is_told_with_enough_seeds(true):
    draws = np.random.default_rng(1)
    one = judge(comparison(true + draws.normal(0, 3, 60), draws.normal(0, 3, 60)), LEVEL)
    assert one.state == {0.0: "level", 5.0: "ahead", -5.0: "behind"}[true]


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ([(9, 10, 11)], REPRODUCED),
        ([(9, 10, 11)] * 20, REPRODUCED),  # all of them: no correction, however many
        ([(9, 10, 11), (-20, 0, 20)], OPEN),
        ([(9, 10, 11), (-20, 0, 20), (-9, -10, -11)], NOT_REPRODUCED),
        ([(9, 10, 11), (-0.1, 0, 0.1)], NOT_REPRODUCED),  # level is not ahead
        ([], NOT_RUN),
    ],
)
def test_a_claim_is_about_all_of_its_comparisons(sides, told):
    assert verdict(judged(*sides)) == told


def test_only_what_speaks_against_a_claim_is_corrected():
    """One of twenty that looks bad by chance refutes nothing; the same one alone does."""
    weak = (-2.2, -0.2, 0.6)
    (alone,) = judged(weak)
    assert 0.05 / 20 < alone.opposes <= 0.05
    assert verdict([alone]) == NOT_REPRODUCED
    assert verdict(judged(weak, *[(-20, 9, 20)] * 19)) == OPEN


def test_a_claim_that_was_not_looked_at_whole_is_not_reproduced_yet():
    assert verdict(judged((9, 10, 11)), complete=False) == OPEN
    assert verdict(judged((-9, -10, -11)), complete=False) == NOT_REPRODUCED


@pytest.mark.parametrize("true", [2.0, -1.0])
def test_a_false_verdict_on_a_claim_is_rare(true):
    """Four comparisons at the end of what is claimed, or clearly outside: told the wrong way in at most 5 of 100 studies."""
    draws = np.random.default_rng(3)
    told = []
    for _ in range(500):
        found = entries(
            [judge(comparison(true + draws.normal(0, 1, 5), draws.normal(0, 1, 5), dataset=str(i)), MORE) for i in range(4)]
        )
        told.append(verdict(found))
    assert np.mean([one == REPRODUCED for one in told]) <= 0.05
    refuted = np.mean([one == NOT_REPRODUCED for one in told])
    # a difference of exactly the margin: refuting it is an error, of 5 of 100 at most; 0.04: four standard errors
    assert refuted <= 0.05 + 0.04 if true == 2.0 else refuted > 0.5


@pytest.mark.parametrize(("ours", "told"), [((-5,), "ahead"), ((-1, 1), UNDECIDED), ((5, 6), "behind")])
def test_what_is_counted_needs_no_interval(ours, told):
    assert judge(comparison(ours, (0,)), Rule("ahead", -1, 0.0, exact=True)).state == told


def test_seeds_that_decide_are_enough_and_not_too_many():
    """In 80 of 100 studies of as many seeds the claim is decided, if the differences are as they were seen; tolerance: 0.05."""
    ours, theirs = np.array([-2.5, 0.0, 2.5]), np.array([-2.0, 0.0, 2.0])
    found = entries([judge(comparison(ours, theirs), LEVEL)])
    needed = judging.seeds_that_decide(found, LEVEL)
    assert verdict(found) == OPEN and 3 < needed < 100
    draws, spread = np.random.default_rng(0), math.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / math.sqrt(2)
    studies = [draws.normal(0, spread, (2, needed)) for _ in range(2000)]
    decided = [judge(comparison(*study), LEVEL).state == "level" for study in studies]
    assert np.mean(decided) == pytest.approx(0.8, abs=0.05)


def test_what_is_too_near_to_the_margin_no_number_of_seeds_decides():
    found = judged((1.0, 2.0, 3.0))
    assert judging.seeds_that_decide(found, MORE) == math.inf


def test_one_seed_is_taken_to_spread_as_the_widest():
    wide, narrow = (4.0, 10.0, 16.0), (9.9, 10.0, 10.1)
    with_wide, with_narrow = (judging.seeds_that_decide(judged((10,), other), MORE) for other in (wide, narrow))
    assert with_narrow <= with_wide < math.inf


def test_an_effect_of_the_papers_size_is_excluded_where_the_interval_is_below_it():
    found = judged((-0.1, 0, 0.1), (-20, 0, 20))
    assert judging.excluded(found, 10.0) == 1
    assert judging.excluded(found, -10.0) == 1
    assert judging.excluded(found, 0.01) == 0


# --- over learning rates ----------------------------------------------------------------------------------------------


def over_rates(*sides, rule=MORE):
    return entries([judge(comparison(ours, rate=0.1 * (place + 1)), rule) for place, ours in enumerate(sides)])


def test_a_claim_over_learning_rates_begins_to_hold_at_one():
    (entry,) = over_rates((-0.1, 0, 0.1), (19, 20, 21), (39, 40, 41))
    assert [one.comparison.setting["rate"] for one in entry.holding] == pytest.approx([0.2, 0.3])
    assert entry.shown is entry.holding[0] and verdict([entry]) == REPRODUCED


def test_holding_at_a_rate_is_corrected_over_the_rates():
    once = (5.2, 7.2, 8.4)
    (alone,) = over_rates(once)
    assert 0.05 / 5 < alone.supports <= 0.05
    (many,) = over_rates(*[(-20, 0, 20)] * 4, once)
    assert not many.holding and many.supports > 0.05
    ps = [one.supports for one in many.rates]
    assert many.supports == pytest.approx(min(holm(ps)))


def test_it_is_refuted_only_where_it_holds_at_no_rate():
    low, wide = (-0.1, 0, 0.1), (-20, 0, 20)
    assert verdict(over_rates(low, low)) == NOT_REPRODUCED
    assert verdict(over_rates(low, wide)) == OPEN
