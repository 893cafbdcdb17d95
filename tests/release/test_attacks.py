"""Bounds on attackers against closed forms, against another algorithm, and against the best attack, which is made."""

import math

import numpy as np
import pytest
from riskcal.analysis import get_beta_from_pld
from scipy import stats

from dpsapf.experiment.records import Release
from dpsapf.release.attacks import FALSE_POSITIVE_RATES, attack_bounds, loss_distribution
from dpsapf.support.checked import replace

ONE = Release(name="saliency", noise_multiplier=2.0, sensitivity=3.0, sampling_rate=1.0, steps=1, noise="system")
SAMPLED = Release(name="dp-sgd", noise_multiplier=0.6, sensitivity=1.0, sampling_rate=0.2, steps=4, noise="system")
WHOLE = replace(ONE, mechanism="exponential", epsilon=1.3, delta=1e-4)


def rates(bounds):
    return np.array([bounds.true_positive_rate[f"{rate:g}"] for rate in FALSE_POSITIVE_RATES])


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (10.0, 1), (0.7, 1), (3.0, 9)])
def test_gaussian_releases_have_the_closed_form(sigma, steps):
    """TPR = Phi(Phi^-1(FPR) + mu), advantage 2 Phi(mu/2) - 1, mu = sqrt(steps)/sigma (Dong, Roth, Su 2022, section 2)."""
    mu = math.sqrt(steps) / sigma
    found = attack_bounds([replace(ONE, noise_multiplier=sigma, steps=steps)])
    exact = stats.norm.cdf(stats.norm.ppf(FALSE_POSITIVE_RATES) + mu)
    # losses are rounded to 1e-3 and up, so that the bound is above, by about 1e-3 of its value at most
    assert (rates(found) >= exact - 1e-6).all() and np.allclose(rates(found), exact, rtol=2e-3)
    assert found.advantage == pytest.approx(2 * stats.norm.cdf(mu / 2) - 1, rel=2e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.3, 1e-4), (4.0, 1e-3)])
def test_a_whole_release_has_the_worst_case_of_its_epsilon_and_delta(epsilon, delta):
    """TPR = min(d + e^eps FPR, 1 - e^-eps (1 - d - FPR)), advantage (e^eps - 1 + 2 d)/(e^eps + 1): Kairouz et al. 2015."""
    found = attack_bounds([replace(WHOLE, epsilon=epsilon, delta=delta)])
    fpr = np.array(FALSE_POSITIVE_RATES)
    exact = np.minimum(delta + math.exp(epsilon) * fpr, 1 - math.exp(-epsilon) * (1 - delta - fpr))
    assert np.allclose(rates(found), exact, rtol=2e-3) and (rates(found) >= exact - 1e-9).all()
    assert found.advantage == pytest.approx((math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1), rel=2e-3)


@pytest.mark.parametrize("releases", [[ONE], [SAMPLED], [ONE, SAMPLED], [WHOLE], [ONE, WHOLE]], ids=range(5))
def test_the_curve_is_riskcals_where_that_is_sound(releases):
    """Algorithm 1 of Kulynych et al. 2024, another way from the same distributions."""
    composed = loss_distribution(releases[0])
    for release in releases[1:]:
        composed = composed.compose(loss_distribution(release))
    other = 1 - get_beta_from_pld(composed, np.array(FALSE_POSITIVE_RATES))
    found = rates(attack_bounds(releases))
    assert (found >= other - 1e-9).all() and np.allclose(found, other, rtol=2e-3)


def losses(release, rng, count):
    """Privacy losses, ln of the odds with the unit to without, of draws without the unit and of draws with it."""
    if release.mechanism == "gaussian":
        sigma, q, shape = release.noise_multiplier, release.sampling_rate, (count, release.steps)
        taken = rng.random(shape) < q
        both = rng.normal(0, sigma, shape), rng.normal(0, sigma, shape) + taken
        return [np.log1p(q * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(axis=1) for seen in both]
    told = [np.where(rng.random(count) < 1 / (1 + math.exp(-release.epsilon)), side, -side) for side in (-1.0, 1.0)]
    sure = [rng.random(count) < release.delta for _ in told]
    return [np.where(sure[side], (-np.inf, np.inf)[side], told[side] * release.epsilon) for side in (0, 1)]


@pytest.mark.parametrize("releases", [[SAMPLED], [ONE, SAMPLED], [SAMPLED, WHOLE], [ONE, SAMPLED, WHOLE]], ids=range(4))
def test_the_best_attack_stays_below_and_comes_near(releases):
    """The likelihood ratio test of Neyman and Pearson, on a million draws with the unit and as many without.

    A whole release does its worst: a coin of odds e^epsilon, which tells all with probability delta.
    """
    rng, count = np.random.default_rng(0), 10**6
    drawn = [losses(release, rng, count) for release in releases]
    out, taken = (sum(both[side] for both in drawn) for side in (0, 1))
    for rate, bound in zip(FALSE_POSITIVE_RATES, rates(attack_bounds(releases)), strict=True):
        # a quantile of 1,000 draws is off by 3 % of its rate, three times that at most; from above by the direction that counts
        tpr = float((taken > np.quantile(out, 1 - rate, method="higher")).mean())
        reverse = float((-out > np.quantile(-taken, 1 - rate, method="higher")).mean())
        assert max(tpr, reverse) < 1.05 * bound
        assert max(tpr, reverse) > 0.9 * bound or rate > 0.05  # the bound is for both directions at once


def test_an_attack_beats_the_curve_that_is_not_used():
    """Why the bound is not taken from `get_beta_from_pld`."""
    rng = np.random.default_rng(0)
    drawn = [losses(release, rng, 10**6) for release in (SAMPLED, WHOLE)]
    out, taken = (sum(both[side] for both in drawn) for side in (0, 1))
    composed = loss_distribution(SAMPLED).compose(loss_distribution(WHOLE))
    assert (taken > np.quantile(out, 0.999)).mean() > 5 * (1 - get_beta_from_pld(composed, 0.001))


def test_more_releases_help_attackers_and_none_leave_them_guessing():
    none = attack_bounds([])
    assert rates(none) == pytest.approx(FALSE_POSITIVE_RATES) and none.advantage == 0
    one, two = attack_bounds([ONE]), attack_bounds([ONE, SAMPLED])
    assert (rates(none) < rates(one)).all() and (rates(one) < rates(two)).all()
    assert none.advantage < one.advantage < two.advantage <= 1


def test_an_exact_release_has_no_bound():
    with pytest.raises(ValueError, match="exact"):
        attack_bounds([replace(ONE, mechanism="none", noise_multiplier=None, noise=None)])
