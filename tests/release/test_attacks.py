"""Bounds on attackers against closed forms, against the privacy profile, and against an attack that is made."""

import math

import numpy as np
import pytest
from scipy import stats

from dpsapf.experiment.records import Release
from dpsapf.release.attacks import FALSE_POSITIVE_RATES, attack_bounds, loss_distribution
from dpsapf.support.checked import replace

ONE = Release(name="saliency", noise_multiplier=2.0, sensitivity=3.0, sampling_rate=1.0, steps=1, noise="system")
SAMPLED = Release(name="dp-sgd", noise_multiplier=0.6, sensitivity=1.0, sampling_rate=0.2, steps=4, noise="system")
WHOLE = replace(ONE, mechanism="exponential", epsilon=1.3, delta=1e-4)
COMPOSED = {"once": [ONE], "sampled": [SAMPLED], "whole": [WHOLE], "all": [ONE, SAMPLED, WHOLE]}


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


@pytest.mark.parametrize("releases", COMPOSED.values(), ids=list(COMPOSED))
def test_the_curve_is_the_hull_of_the_privacy_profile(releases):
    """No attack beats e^eps FPR + delta(eps), nor 1 - e^-eps (1 - delta(eps) - FPR), at any eps; the best of these is the curve."""
    composed = loss_distribution(releases[0])
    for release in releases[1:]:
        composed = composed.compose(loss_distribution(release))
    eps = np.linspace(-9, 15, 2401)
    delta = np.array(composed.get_delta_for_epsilon(list(eps)))
    for rate, found in zip(FALSE_POSITIVE_RATES, rates(attack_bounds(releases)), strict=True):
        hull = min(np.min(np.exp(eps) * rate + delta), np.min(1 - np.exp(-eps) * (1 - delta - rate)))
        assert found <= hull + 1e-9 and found == pytest.approx(hull, rel=5e-3)


def test_the_best_attack_on_sampled_steps_stays_below_and_comes_near():
    """The likelihood ratio test of Neyman and Pearson, on 400,000 draws with the unit and as many without."""
    count, rng, sigma = 400_000, np.random.default_rng(0), SAMPLED.noise_multiplier
    out = rng.normal(0, sigma, (count, SAMPLED.steps))
    sampled = rng.random((count, SAMPLED.steps)) < SAMPLED.sampling_rate
    taken = rng.normal(0, sigma, (count, SAMPLED.steps)) + sampled

    def ratio(seen):
        odds = np.exp((2 * seen - 1) / (2 * sigma**2))
        return np.log1p(SAMPLED.sampling_rate * (odds - 1)).sum(axis=1)

    bounds = attack_bounds([SAMPLED])
    for rate, bound in zip(FALSE_POSITIVE_RATES, rates(bounds), strict=True):
        tpr = float((ratio(taken) > np.quantile(ratio(out), 1 - rate)).mean())
        assert 0.93 * bound < tpr < 1.03 * bound  # three standard errors of a quantile of 400 draws are 3 % of it


def test_more_releases_help_attackers_and_none_leave_them_guessing():
    none = attack_bounds([])
    assert rates(none) == pytest.approx(FALSE_POSITIVE_RATES) and none.advantage == 0
    one, two = attack_bounds([ONE]), attack_bounds([ONE, SAMPLED])
    assert (rates(none) < rates(one)).all() and (rates(one) < rates(two)).all()
    assert none.advantage < one.advantage < two.advantage <= 1


def test_an_exact_release_has_no_bound():
    with pytest.raises(ValueError, match="exact"):
        attack_bounds([replace(ONE, mechanism="none", noise_multiplier=None, noise=None)])
