import math
import warnings
from pathlib import Path

import pytest

from dpsapf.experiment.columns import CERTIFIERS
from dpsapf.experiment.records import Release
from dpsapf.privacy import accounting
from dpsapf.privacy.accounting import (
    ACCOUNTANTS,
    CARRIED,
    USUAL_SIGMA,
    calibrate,
    epsilon,
    finite,
    margin,
    rounded_up,
    spent_epsilon,
)
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

N = 45_000
DELTA = 1 / (N * math.log(N))
SALIENCY = Release(name="saliency", noise_multiplier=5.0, sensitivity=1.0, sampling_rate=1.0, steps=1)


def dp_sgd(sigma, rate=4096 / N, steps=1000):
    return Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=1.0, sampling_rate=rate, steps=steps)


@pytest.fixture(scope="module")
def paper_sigma():
    """Noise of DP-SGD alone at epsilon 10 in the paper's setting."""
    return calibrate(10.0, DELTA, lambda sigma: [dp_sgd(sigma)])


def test_noise_of_the_papers_setting(paper_sigma):
    assert paper_sigma == pytest.approx(1.70, abs=0.01)  # two decimals are what is published


@pytest.mark.parametrize(("target", "composed"), [(10.0, 10.05), (1.0, 1.31)])
def test_leaving_the_selection_out_would_exceed_the_target(target, composed):
    sigma = calibrate(target, DELTA, lambda sigma: [dp_sgd(sigma)])
    assert epsilon("pld", [SALIENCY, dp_sgd(sigma)], DELTA) == pytest.approx(composed, abs=0.01)  # published to two decimals


def test_calibration_counts_the_selection_and_both_certifiers_agree(paper_sigma):
    sigma = calibrate(10.0, DELTA, lambda sigma: [SALIENCY, dp_sgd(sigma)])
    releases = [SALIENCY, dp_sgd(sigma)]
    assert sigma > paper_sigma
    assert 9.9 < epsilon("pld", releases, DELTA) <= 10.0
    assert 9.9 < epsilon("prv", releases, DELTA) <= 10.0


def test_infeasible_target_is_refused_with_the_smallest_feasible_epsilon():
    with pytest.raises(
        UserError, match=r"saliency release alone costs 0\.8.*raise epsilon above 0\.8.*sigma_s from 5 above 19\.06"
    ):
        calibrate(0.2, DELTA, lambda sigma: [SALIENCY, dp_sgd(sigma)])


def test_training_that_exceeds_the_target_with_a_noise_of_2000_is_refused():
    with pytest.raises(
        UserError, match=r"epsilon = 0\.03: cannot be met: DP-SGD with noise multiplier 2000 costs (0\.03\d).*above \1$"
    ):
        calibrate(0.03, 1e-9, lambda sigma: [dp_sgd(sigma, rate=1.0, steps=100)])


@pytest.mark.parametrize(
    ("count", "told"), [(1, "the saliency release alone costs"), (2, "the earlier releases"), (4, "the earlier")]
)
def test_what_exceeds_the_target_by_itself_is_named(count, told):
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=2.0, delta=DELTA / 10)
    with pytest.raises(UserError, match=rf"epsilon = 1\.0: cannot be met: {told}.* {2 * count}\.010 .*above {2 * count}\.010$"):
        calibrate(1.0, DELTA, lambda sigma: [*[whole] * count, dp_sgd(sigma, steps=100)])


def test_gaussian_matches_the_closed_form():
    """One Gaussian release against the analytic Gaussian mechanism (Balle and Wang 2018)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    sigma, delta = 5.0, 1e-5

    def analytic_delta(value):
        return norm.cdf(0.5 / sigma - value * sigma) - math.exp(value) * norm.cdf(-0.5 / sigma - value * sigma)

    expected = brentq(lambda value: analytic_delta(value) - delta, 0.01, 10)
    release = Release(name="saliency", noise_multiplier=sigma, sensitivity=1.0, sampling_rate=1.0, steps=1)
    assert 0 < epsilon("pld", [release], delta) - expected < 4e-6  # the PLD's discretisation, to the safe side
    assert epsilon("prv", [release], delta) == pytest.approx(expected, abs=0.021)  # twice its error bound


def test_renyi_equals_opacus_own():
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(1.8, 4096 / N, 200)]
    expected = accountant.get_epsilon(DELTA)
    assert epsilon("rdp", [dp_sgd(1.8, steps=200)], DELTA) == pytest.approx(expected, rel=0.01)  # other orders


def test_gaussian_dp_is_exact_for_one_gaussian_and_approximate_beyond():
    whole = Release(name="dp-sgd", noise_multiplier=10.0, sensitivity=1.0, sampling_rate=1.0, steps=4)
    assert epsilon("gdp", [whole], DELTA) == pytest.approx(epsilon("pld", [whole], DELTA), rel=1e-3)  # discretisation
    assert epsilon("gdp", [SALIENCY, whole], DELTA) == pytest.approx(epsilon("pld", [SALIENCY, whole], DELTA), rel=1e-3)
    sampled = [dp_sgd(1.0, rate=0.01, steps=1000)]
    assert epsilon("gdp", sampled, DELTA) < epsilon("pld", sampled, DELTA)  # no upper bound, so it certifies nothing


@pytest.mark.parametrize("name", list(ACCOUNTANTS))
def test_whole_releases_add_their_epsilon_and_take_their_delta(name):
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=0.3, delta=DELTA / 4)
    steps = [dp_sgd(2.0, steps=50)]
    assert epsilon(name, [whole], DELTA) == 0.3
    assert epsilon(name, [whole, *steps], DELTA) == pytest.approx(0.3 + epsilon(name, steps, 0.75 * DELTA))
    assert math.isinf(epsilon(name, [replace(whole, delta=DELTA), *steps], DELTA))


def test_calibration_counts_whole_releases():
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=2.0, delta=DELTA / 10)
    sigma = calibrate(10.0, DELTA, lambda sigma: [whole, dp_sgd(sigma, steps=100)])
    assert 9.9 < epsilon("pld", [whole, dp_sgd(sigma, steps=100)], DELTA) <= 10.0
    with pytest.raises(UserError, match=r"costs 2\.01"):
        calibrate(1.0, DELTA, lambda sigma: [whole, dp_sgd(sigma, steps=100)])


def test_accountants_order():
    releases = [SALIENCY, dp_sgd(1.8, steps=200)]
    assert epsilon("pld", releases, DELTA) < epsilon("rdp", releases, DELTA)


@pytest.mark.parametrize("name", list(ACCOUNTANTS))
def test_more_steps_or_less_noise_cost_more(name):
    base = epsilon(name, [dp_sgd(2.0, steps=50)], DELTA)
    assert epsilon(name, [dp_sgd(2.0, steps=100)], DELTA) > base
    assert epsilon(name, [dp_sgd(1.5, steps=50)], DELTA) > base
    assert epsilon(name, [SALIENCY, dp_sgd(2.0, steps=50)], DELTA) > base


def test_nothing_released_costs_nothing():
    assert [epsilon(name, [], DELTA) for name in ACCOUNTANTS] == [0.0] * 4


def test_unknown_accountant_is_refused():
    with pytest.raises(UserError, match=r"accountant = 'moments': must be one of pld, rdp, prv, gdp"):
        epsilon("moments", [SALIENCY], DELTA)


@pytest.mark.parametrize(
    ("target", "images", "rate", "steps"), [(10.0, 1200, 350 / 1200, 30), (1.0, 3500, 0.1, 30), (10.0, 3500, 0.1, 60)]
)
def test_every_plan_of_the_demos_kind_is_certified_by_prv(target, images, rate, steps):
    """PRV's upper bound may stand twice its error above PLD's: the margin must cover it."""
    delta = 1 / (images * math.log(images))
    saliency = Release(name="saliency", noise_multiplier=10.0, sensitivity=0.01, sampling_rate=1.0, steps=1)
    sigma = calibrate(target, delta, lambda value: [saliency, dp_sgd(value, rate, steps)])
    assert target - 0.03 < epsilon("prv", [saliency, dp_sgd(sigma, rate, steps)], delta) <= target


def test_a_target_of_the_margin_alone_is_refused():
    with pytest.raises(UserError, match=r"DP-SGD with noise multiplier 2000 costs 0\.010 .*above 0\.010$"):
        calibrate(accounting.MARGIN, 0.01, lambda sigma: [dp_sgd(sigma, steps=1)])
    with pytest.raises(UserError, match=r"the saliency release alone costs (0\.8\d\d) .* above \1$"):
        calibrate(accounting.MARGIN, DELTA, lambda sigma: [SALIENCY, dp_sgd(sigma)])


def test_pld_rounds_losses_up_to_its_interval(monkeypatch):
    fine = epsilon("pld", [dp_sgd(1.0)], DELTA)
    monkeypatch.setattr(accounting, "PLD_INTERVAL", 0.1)
    assert fine + 1e-3 < epsilon("pld", [dp_sgd(1.0)], DELTA)


def test_noise_is_calibrated_at_the_interval_at_which_it_is_checked(monkeypatch):
    fine = calibrate(1.0, DELTA, lambda sigma: [dp_sgd(sigma)])
    monkeypatch.setattr(accounting, "PLD_INTERVAL", 0.1)
    coarse = calibrate(1.0, DELTA, lambda sigma: [dp_sgd(sigma)])
    assert coarse > 1.01 * fine and epsilon("pld", [dp_sgd(coarse)], DELTA) <= 1.0


SETTINGS = {  # N, sampling rate, steps, sigma_s
    "the demo's": (3500, 0.1, 30, 10.0),
    "few images, large batches": (1200, 350 / 1200, 30, 30.0),
    "every image in every step": (105, 1.0, 15, None),
    "the paper's": (45_000, 4096 / 45_000, 1000, 5.0),
    "ten images": (10, 0.5, 40, None),
    "many images": (160_000, 0.0256, 2000, None),
    "one step": (3500, 0.1, 1, None),
    "one step of all": (1000, 1.0, 1, None),
}
FEASIBLE = {"the demo's": 1, "few images, large batches": 1, "the paper's": 1}  # least target; elsewhere any


def composed(setting, target):
    """Noise of DP-SGD at a target in a setting, and what it then spends, as a ledger has it."""
    images, rate, steps, sigma_s = SETTINGS[setting]
    delta, fixed = 1 / (images * math.log(images)), [replace(SALIENCY, noise_multiplier=sigma_s)] if sigma_s else []
    sigma = calibrate(target, delta, lambda value: [*fixed, dp_sgd(value, rate, steps)])
    return sigma, spent_epsilon([*fixed, dp_sgd(sigma, rate, steps)], delta)


def check_within(setting, target):
    """No certifier exceeds the target; the target is used up as far as calibration's margin and the end allow."""
    _, spent = composed(setting, target)
    assert max(spent[name] for name in CERTIFIERS) <= target, spent
    assert spent["prv"] - spent["pld"] < margin(target), "what the search leaves by its tolerance is not counted on"
    assert spent["pld"] >= 0.99 * min(target - margin(target), CARRIED), spent


@pytest.mark.parametrize(
    ("setting", "target"),
    [("the demo's", 50.0), ("ten images", 50.0), ("every image in every step", 10.0), ("one step of all", 20.0)],
)
def test_no_certifier_exceeds_a_target_and_the_target_is_used_up(setting, target):
    check_within(setting, target)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", [0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 21.0, 30.0, 50.0, 100.0, 300.0, 1000.0])
def test_no_certifier_exceeds_any_target_in_any_setting(setting, target):
    if target >= FEASIBLE.get(setting, 0):
        check_within(setting, target)


def test_the_docs_say_where_targets_end():
    text = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    assert f"until epsilon is {CARRIED:g}. Above, nothing changes: the run spends {CARRIED:g}" in text
    assert f"or 1 part in {1000 / margin(1000.0):,.0f} of it above 20" in text and margin(20.0) == margin(1.0) < margin(20.1)


def test_loose_targets_are_different_runs_up_to_what_accountants_carry(monkeypatch):
    """Noise goes on shrinking below 0.4; beyond the end the target changes nothing."""
    monkeypatch.setattr(accounting, "CARRIED", 25.0)
    (first, spent), (second, more), (third, most) = (composed("one step of all", target) for target in (15.0, 40.0, 1000.0))
    assert USUAL_SIGMA > first > second == third
    assert spent["pld"] < 15 < 24 < more["pld"] <= 25 and more == most


def test_releases_that_are_private_as_a_whole_do_not_count_towards_the_end(monkeypatch):
    """The end is of what PRV composes, which they are not."""
    monkeypatch.setattr(accounting, "CARRIED", 20.0)
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=30.0, delta=DELTA / 10)
    sigma = calibrate(1000.0, DELTA, lambda value: [whole, dp_sgd(value, 1.0, 1)])
    assert 49 < epsilon("pld", [whole, dp_sgd(sigma, 1.0, 1)], DELTA) <= 50


def test_earlier_releases_beyond_what_accountants_carry_are_refused(monkeypatch):
    monkeypatch.setattr(accounting, "CARRIED", 0.5)
    with pytest.raises(UserError, match=r"alone costs 0\.8\d\d at .*, and accountants carry 0\.5: leave earlier releases out"):
        calibrate(1000.0, DELTA, lambda sigma: [SALIENCY, dp_sgd(sigma)])


def test_an_approximation_that_ends_is_infinite_and_stays_out_of_records():
    """Gaussian DP's formulas end at 500, where those of bounds go on."""
    loose = [dp_sgd(0.25, rate=0.1, steps=30)]
    spent = spent_epsilon(loose, DELTA)
    assert math.isinf(spent["gdp"]) and set(finite(spent)) == {"pld", "rdp", "prv"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isinf(epsilon("gdp", [dp_sgd(0.03, rate=0.1, steps=1)], DELTA))


def test_recorded_epsilons_are_rounded_up_to_six_digits():
    """What differs by the machine, PRV's last bits, is gone; an upper bound stays one."""
    releases = [SALIENCY, dp_sgd(1.8, steps=200)]
    for name, told in spent_epsilon(releases, DELTA).items():
        exact = epsilon(name, releases, DELTA)
        assert exact <= told < exact * (1 + 1e-5) and told == float(f"{told:.6g}"), name


@pytest.mark.parametrize(
    ("value", "told"),
    [(9.98950000001, 9.98951), (0.25, 0.25), (123.4567, 123.457), (0.0, 0.0), (math.inf, math.inf)],
)
def test_rounding_up(value, told):
    assert rounded_up(value, 6) == told


@pytest.mark.parametrize("target", [0.05, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 20), (0.1, 100)])
def test_what_surely_meets_a_target_does_so_under_the_accountant(target, rate, steps):
    """The closed form never says yes where the accountant says no, and says yes where much noise is added."""
    delta, answers = 1e-5, set()
    for noise in (0.05, 0.3, 1.0, 3.0, 30.0, 300.0, 2000.0):
        releases = [
            Release(name="dp-sgd", noise_multiplier=noise, sensitivity=1.0, sampling_rate=rate, steps=steps, noise="seed")
        ]
        answers.add(surely := accounting.surely_meets(target, delta, releases))
        assert not surely or epsilon("pld", releases, delta) <= target
    assert True in answers


def test_only_an_accountant_tells_of_other_mechanisms_and_of_the_resolution():
    gaussian = Release(name="dp-sgd", noise_multiplier=2000.0, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="seed")
    whole = Release(
        name="saliency", mechanism="exponential", epsilon=0.1, delta=1e-6, sensitivity=1.0, sampling_rate=1.0, steps=1
    )
    assert accounting.surely_meets(1.0, 1e-5, [gaussian])
    assert not accounting.surely_meets(1.0, 1e-5, [whole, gaussian])
    assert not accounting.surely_meets(accounting.MARGIN, 1e-5, [gaussian])
