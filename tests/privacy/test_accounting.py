import math
import re
import warnings
from pathlib import Path

import pytest

from dpsapf.experiment.columns import CERTIFIERS
from dpsapf.experiment.records import Release
from dpsapf.privacy import accounting
from dpsapf.privacy.accounting import (
    ACCOUNTANTS,
    CARRIED,
    LEAST,
    PRV_STEP,
    USUAL_SIGMA,
    calibrate,
    epsilon,
    finite,
    pld_epsilon,
    pld_interval,
    prv_error,
    rounded_up,
    spent_epsilon,
)
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from tests.privacy.calibration import MORE_TARGETS, SETTINGS, TARGETS, composed

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
        UserError, match=r"saliency release alone costs 0\.8.*raise epsilon above 0\.8.*sigma_s from 5 above 18\.34"
    ):
        calibrate(0.2, DELTA, lambda sigma: [SALIENCY, dp_sgd(sigma)])


def test_training_that_exceeds_the_target_with_a_noise_of_2000_is_refused():
    with pytest.raises(
        UserError, match=r"epsilon = 0\.02: cannot be met: DP-SGD with noise multiplier 2000 costs (0\.02\d*).*above \1$"
    ):
        calibrate(0.02, 1e-9, lambda sigma: [dp_sgd(sigma, rate=1.0, steps=100)])


@pytest.mark.parametrize(
    ("count", "told"), [(1, "the saliency release alone costs"), (2, "the earlier releases"), (4, "the earlier")]
)
def test_what_exceeds_the_target_by_itself_is_named(count, told):
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=2.0, delta=DELTA / 10)
    with pytest.raises(UserError, match=rf"epsilon = 1\.0: cannot be met: {told}.* {2 * count} at .*above {2 * count}$"):
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
    with pytest.raises(UserError, match=r"costs 2 at"):
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


@pytest.mark.parametrize(("rate", "steps", "told"), [(1.0, 100, "DP-SGD with noise"), (0.1, 40, "the saliency release alone")])
def test_the_target_that_a_refusal_names_is_the_least_one_that_is_met(rate, steps, told):
    """To the last of its digits, of which it has four."""

    def build(sigma):
        return [*([SALIENCY] if told.startswith("the") else []), dp_sgd(sigma, rate, steps)]

    with pytest.raises(UserError, match=f"{told}.* costs? ") as refusal:
        calibrate(LEAST, 1e-9, build)
    least = float(re.search(r"raise epsilon above ([\d.]+)", str(refusal.value))[1])
    accounting.check_target(1.001 * least, 1e-9, build)
    with pytest.raises(UserError, match=told):
        accounting.check_target(0.998 * least, 1e-9, build)


def test_pld_rounds_losses_up_to_its_interval(monkeypatch):
    fine = epsilon("pld", [dp_sgd(1.0)], DELTA)
    monkeypatch.setattr(accounting, "PLD_INTERVAL", 0.1)
    assert fine + 1e-3 < epsilon("pld", [dp_sgd(1.0)], DELTA)


def test_noise_is_calibrated_at_the_interval_at_which_it_is_checked(monkeypatch):
    fine = calibrate(1.0, DELTA, lambda sigma: [dp_sgd(sigma)])
    monkeypatch.setattr(accounting, "PLD_INTERVAL", 0.1)
    coarse = calibrate(1.0, DELTA, lambda sigma: [dp_sgd(sigma)])
    assert coarse > 1.01 * fine and epsilon("pld", [dp_sgd(coarse)], DELTA) <= 1.0


def check_within(setting, target):
    """The larger bound, as a ledger has it, is at most the target and 99 % of it, as far as PRV carries."""
    _, spent = composed(setting, target)
    most = max(spent[name] for name in CERTIFIERS)
    assert most <= target, spent
    if PRV_STEP * math.sqrt(SETTINGS[setting].steps) <= 2 * target:  # beyond, PRV's error stays what it is
        assert most >= 0.99 * min(target, CARRIED), spent


@pytest.mark.parametrize(
    ("setting", "target"),
    [
        ("one step", 0.1),
        ("one step of all", 0.01),
        ("every image in every step", 0.1),
        ("ten images", 0.01),
        ("one step beside scores", 0.3),
        ("the paper's, little noise for small targets", 0.1),
        ("one step of all", 20.0),
    ],
)
def test_no_certifier_exceeds_a_target_and_the_target_is_used_up(setting, target):
    check_within(setting, target)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", sorted({*TARGETS, *MORE_TARGETS, 1000.0}))
def test_no_certifier_exceeds_any_target_in_any_setting(setting, target):
    if target >= SETTINGS[setting].least:
        check_within(setting, target)


@pytest.mark.parametrize("setting", ["the paper's, little noise for small targets", "many images", "many steps"])
def test_pld_is_as_fine_as_a_small_epsilon_needs(setting, monkeypatch):
    """A grid eight times as fine gives nearly the same: at one fixed interval, small targets would cost noise."""
    chosen = SETTINGS[setting]
    releases = chosen.releases(calibrate(0.1, chosen.delta, chosen.releases))
    told = pld_epsilon(releases, chosen.delta)
    monkeypatch.setattr(accounting, "PLD_INTERVAL", pld_interval(told, releases) / 8)
    monkeypatch.setattr(accounting, "PLD_STEPS", 1e12)  # no finer
    finest = pld_epsilon(releases, chosen.delta)
    assert finest < told < 1.005 * finest  # half of what calibration leaves to the target


def test_the_search_becomes_finer_where_it_leaves_too_much(monkeypatch):
    monkeypatch.setattr(accounting, "SIGMA_TOLERANCES", (0.5, 1e-3))
    chosen = SETTINGS["one step of all"]
    sigma = calibrate(10.0, chosen.delta, chosen.releases)
    assert 0.99 * 10 <= epsilon("pld", chosen.releases(sigma), chosen.delta) <= 10


@pytest.mark.parametrize("steps", [1, 30, 1000, 20_000, 10_000_000])
def test_errors_grow_with_epsilon_so_that_what_is_left_to_a_target_covers_those_below_it(steps):
    releases = [dp_sgd(1.0, steps=steps)]
    told = [prv_error(target, releases) for target in (0, *MORE_TARGETS, 600)]
    assert told == sorted(told) and told[0] > 0
    assert prv_error(1.0, releases) == prv_error(20.0, releases) == accounting.PRV_ERROR


def test_intervals_refine_each_other_and_end():
    """Each is the usual one halved some times: so a finer one never tells more."""
    found = [pld_interval(value, [dp_sgd(1.0, steps=steps)]) for value in (0, *MORE_TARGETS) for steps in (1, 30, 10**5)]
    assert all(math.frexp(accounting.PLD_INTERVAL / interval)[0] == 0.5 for interval in found), "powers of two"
    assert max(found) == accounting.PLD_INTERVAL and min(found) == pld_interval(LEAST, [dp_sgd(1.0, steps=10**5)])


def test_the_part_that_is_calibrated_beside_whole_releases_is_used_up_and_rounding_never_exceeds_the_target():
    """What is left to the target is of the Gaussian part, however small, and of the digits of records."""
    delta, target = 1e-5, 2 + 1 / 70
    whole = Release(name="saliency", mechanism="ptr", sensitivity=1.0, sampling_rate=1.0, steps=1, epsilon=2.0, delta=delta / 10)

    def build(sigma):
        return [whole, dp_sgd(sigma, 1.0, 1)]

    spent = spent_epsilon(build(calibrate(target, delta, build)), delta)
    most = max(spent[name] for name in CERTIFIERS)
    assert most <= target and most - 2 >= 0.98 * (target - 2)  # the digits of records take the second hundredth


def test_the_docs_say_where_targets_end():
    text = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    assert f"until epsilon is {CARRIED:g}. Above, nothing changes: the run spends {CARRIED:g}" in text
    assert "Targets begin at a hundredth." in text and LEAST == 0.01
    assert f"below the root of the steps over {1 / PRV_STEP:g}" in text
    for told, target in ((f"1 part in {0.1 / 2 / prv_error(0.1, [SALIENCY]):.0f} of", 0.5), ("a hundredth above 1", 10.0)):
        assert told in text and 2 * prv_error(target, [SALIENCY]) == pytest.approx(0.01 * min(target, 1), rel=0.03)  # 1/98
    assert f"1 part in {1 / 2 / accounting.PRV_SHARE:,.0f} of it above 20" in text


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
    with pytest.raises(UserError, match=r"alone costs 0\.8\d\d\d at .*, and accountants carry 0\.5: leave earlier releases out"):
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
    assert not accounting.surely_meets(1e-9, 1e-5, [replace(gaussian, steps=10**7)]), "nothing is left beside PRV's error"
