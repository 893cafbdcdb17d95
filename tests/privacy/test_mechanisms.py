import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import DIGITS, SeededNoise
from dpsapf.privacy.values import Private, only_released
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator

DELTA = 1e-5
SCORES = np.array([10.0, 1.0, 7.0, 4.0, 0.0, 2.0])


def ranking(units=(0, 1, 2, 3, 4, 5), kept=2, unit_sensitivity=1.0):
    return Ranking(unit_of=np.array(units), kept=kept, sensitivity=1.0, unit_sensitivity=unit_sensitivity)


def released(name, scores=SCORES, seed=0, sigma_s=5.0, **changes):
    described = ranking(**changes)
    planned = mechanism(name).plan(described, sigma_s, 1.0, DELTA)
    source = SeededNoise(torch_generator(seed, name))
    return mechanism(name).release(private(scores), described, planned, source, Meter(1)).values[0].numpy()


def private(scores):
    return Private([torch.tensor(scores)])


def test_gaussian_noise_has_the_planned_scale():
    noise = np.concatenate([released("gaussian", seed=seed) - SCORES for seed in range(400)])
    assert stats.kstest(noise, stats.norm(0, 5).cdf).pvalue > 0.01
    assert stats.kstest(noise, stats.norm(0, 5 * 2 / 3).cdf).pvalue < 1e-6


def test_a_plan_says_what_is_released():
    described = Ranking(unit_of=np.arange(6), kept=2, sensitivity=3.0, unit_sensitivity=2.0)
    for name, sensitivity in (("gaussian", 3.0), ("exponential", 2.0), ("ptr", 2.0)):
        planned = mechanism(name).plan(described, 5.0, 0.25, DELTA)
        assert (planned.name, planned.mechanism, planned.steps) == ("saliency", name, 1)
        assert (planned.noise_multiplier, planned.sensitivity, planned.sampling_rate) == (5.0, sensitivity, 0.25)
    assert mechanism("none").plan(described, None, 0.25, DELTA).steps == 1


def test_scores_without_noise_are_of_no_use_to_who_wants_released_ones():
    with pytest.raises(TypeError, match="Private was not released"):
        only_released(private(SCORES))


def test_private_sums_are_not_pickled():
    with pytest.raises(TypeError, match="not written to a file"):
        pickle.dumps(private(SCORES))
    assert "tensor" not in repr(private(SCORES))


def test_exponential_draws_follow_the_exponential_mechanism():
    """First draw: probability proportional to exp(e s/D), e = 2/(sigma_s sqrt(k))."""
    rate = 2 / (5.0 * math.sqrt(2))
    expected = np.exp(rate * SCORES) / np.exp(rate * SCORES).sum()
    first = [int(released("exponential", seed=seed).argmax()) for seed in range(3000)]
    counts = np.bincount(first, minlength=6)
    assert stats.chisquare(counts, 3000 * expected).pvalue > 0.01
    twice = np.exp(2 * rate * SCORES) / np.exp(2 * rate * SCORES).sum()
    assert stats.chisquare(counts, 3000 * twice).pvalue < 1e-6


def test_exponential_on_real_neighbours_stays_within_its_pure_bound():
    """One image raises scores by at most D each: no first draw's log-probability moves by more than e."""
    rate = 2 / (5.0 * math.sqrt(2))

    def log_probabilities(scores):
        return rate * scores - np.logaddexp.reduce(rate * scores)

    generator = np.random.default_rng(0)
    for _ in range(200):
        neighbour = SCORES + generator.integers(0, 2, 6) * generator.random(6)
        ratios = log_probabilities(neighbour) - log_probabilities(SCORES)
        assert ratios.max() - ratios.min() <= rate + 1e-12
    beyond = log_probabilities(SCORES + np.array([3.0, 0, 0, 0, 0, 0])) - log_probabilities(SCORES)
    assert beyond.max() - beyond.min() > rate


def test_exponential_releases_the_order_of_k_units_only():
    order = released("exponential", sigma_s=0.01)
    assert order.tolist() == [2, 0, 1, 0, 0, 0]


def test_exponential_cost_is_that_of_an_equal_gaussian_in_zcdp():
    release = mechanism("exponential").plan(ranking(), 5.0, 1.0, DELTA)
    rho = 2 * (2 / (5.0 * math.sqrt(2))) ** 2 / 8
    assert rho == pytest.approx(1 / (2 * 5.0**2))
    assert release.epsilon == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1 / release.delta)))


@pytest.mark.parametrize("name", ["exponential", "ptr"])
def test_units_are_ranked_by_their_sums(name):
    layers = released(name, scores=np.array([9.0, 0, 7, 4, 0, 2]) * 1e4, units=(0, 0, 1, 1, 2, 2), kept=1)
    assert (layers > 0).tolist() == [False, False, True, True, False, False]  # sums 9, 11, 2; the best matrix is in the first
    assert np.bincount([0, 0, 1, 1, 2, 2], weights=layers).tolist() == [0, 1, 0]


def test_ptr_releases_the_exact_top_k_across_a_wide_gap():
    threshold = 1 + 5.0 * math.log(1 / (2 * DELTA * 0.1))
    wide = np.array([1.0, 0, 0, 0, 0, 0]) * 3 * threshold
    assert released("ptr", scores=wide, kept=1).tolist() == [1, 0, 0, 0, 0, 0]


def test_ptr_refuses_and_says_what_it_cost():
    with pytest.raises(UserError, match=r"refused: .*epsilon 0\.2 is spent all the same"):
        released("ptr")


def test_ptr_hardly_ever_releases_an_unstable_set():
    """At a gap of exactly D the test passes with probability delta."""
    loose = replace(mechanism("ptr").plan(ranking(kept=1), 1.0, 1.0, 1.0), delta=0.1)
    scores = np.array([1.0, 0, 0, 0, 0, 0])
    passed = 0
    for seed in range(2000):
        try:
            source = SeededNoise(torch_generator(seed, "ptr"))
            mechanism("ptr").release(private(scores), ranking(kept=1), loose, source, Meter(1))
            passed += 1
        except UserError:
            pass
    assert 0.07 < passed / 2000 < 0.13  # four standard errors about 0.1


def test_ptr_measures_the_gap_in_units_of_what_one_image_moves():
    """At the same scores, a tenth of the unit sensitivity lets the test pass, ten times of it does not."""
    threshold = 1 + 5.0 * math.log(1 / (2 * DELTA * 0.1))
    scores = np.array([1.0, 0, 0, 0, 0, 0]) * 2 * threshold
    assert released("ptr", scores=scores, kept=1, unit_sensitivity=0.1).tolist() == [1, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="refused"):
        released("ptr", scores=scores, kept=1, unit_sensitivity=10.0)


def test_ptr_refuses_large_scores_that_are_close():
    with pytest.raises(UserError, match="refused"):
        released("ptr", scores=np.array([9.0, 9, 0, 0, 0, 0]) * 1e6, kept=1)


def test_ptr_releases_all_units_whatever_their_scores():
    assert released("ptr", kept=6).tolist() == [1] * 6  # no image could change a set of everything


def test_ptr_gap_moves_by_at_most_one_between_neighbours():
    generator = np.random.default_rng(1)

    def gap(scores, kept):
        ordered = np.sort(scores)[::-1]
        return ordered[kept - 1] - ordered[kept]

    for _ in range(300):
        scores, kept = generator.random(6) * 5, int(generator.integers(1, 6))
        assert abs(gap(scores + generator.random(6), kept) - gap(scores, kept)) <= 1


def test_ptr_gap_keeps_its_digits():
    """Scores of 53 bits, far apart: their difference has more."""
    seen = []

    class Looking(Meter):
        def laplace(self, gap, *arguments):
            seen.append(gap)
            return super().laplace(gap, *arguments)

    scores = [2.0**40, 2.0**-60]
    planned = mechanism("ptr").plan(ranking((0, 1), kept=1, unit_sensitivity=0.75), 5.0, 1.0, DELTA)
    mechanism("ptr").release(private(scores), ranking((0, 1), kept=1), planned, SeededNoise(torch_generator(0, "x")), Looking(1))
    exact = (Fraction(scores[0]) - Fraction(scores[1])) / Fraction(3, 4)
    assert abs(Fraction(seen[0]) - exact) <= exact / 10 ** (DIGITS - 2)  # a subtraction and a division


def test_without_noise_scores_are_exact():
    described = dataclasses.replace(ranking(), sensitivity=None)
    planned = mechanism("none").plan(described, None, 1.0, DELTA)
    assert planned.mechanism == "none" and planned.noise_multiplier is None
    (exact,) = mechanism("none").release(private(SCORES), described, planned, None, Meter(1)).values
    assert exact.tolist() == SCORES.tolist()


def test_unknown_mechanism_is_refused():
    with pytest.raises(UserError, match="must be one of gaussian, exponential, ptr, none"):
        mechanism("laplace")
