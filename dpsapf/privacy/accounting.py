"""Composition of a run's releases under four accountants, and the calibration of DP-SGD's noise.

The neighbouring relation is zero-out (Ponomareva et al. 2023, arXiv 2303.00654, section 2.1): N is public and the same,
one image adds nothing to any sum. Sampling rates are B/N and delta depends on N, so adding or removing an image would
change both; at a fixed N the pair of output distributions is that of adding or removing one of the sampled terms, which
is what the accountants call ADD_OR_REMOVE_ONE. Poisson-subsampled Gaussians compose numerically:
PLD and RDP are dp-accounting's, PRV and GDP are Opacus'. A release that is (e, d)-DP as a whole adds its e, and
takes its d from the target delta (basic composition), under every accountant.
"""

import decimal
import logging
import math
import typing
import warnings
from collections.abc import Callable, Sequence

from dpsapf.experiment.records import Release
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    from dp_accounting import DpEvent

PRV_ERROR = 0.005  # usual eps_error of the PRV accountant: its estimate may be off by this, its upper bound by twice this
PRV_USUAL = 0.98  # epsilon below which its errors are smaller in proportion: below what runs of target 1 spend
PRV_SHARE = 2.5e-4  # its eps_error as a share of epsilon, where that is more: time and memory grow with epsilon / eps_error
PRV_STEP = 4e-4  # times the root of the steps: the epsilon below which PRV gets no finer, as it would need over 3 GB
PRV_DELTA = 1000  # parts of delta, one of which is its usual error of delta: Opacus' default
LEAST = 0.01  # smallest target epsilon
CARRIED = 300.0  # largest epsilon that noise is looked for at; at twice that PRV took over 12 GB for 5000 steps at a tiny rate
PLD_INTERVAL = 1e-3  # pessimistic discretisation of the privacy loss: 6e-6 above 1e-4's epsilon at epsilon 10
PLD_STEPS = 1200  # steps that this interval is fine enough for at epsilon 1: its error is then a thousandth of it
USUAL_SIGMA = 0.4  # noise multiplier from which the search goes up, or down where the target is loose
LARGEST_SIGMA = 2000.0
SIGMA_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)  # of the search: the next one where too little of the target is used up
USED_UP = 0.996  # share of what PLD may compose to that is enough
DIGITS = 6  # of a recorded epsilon, rounded up: PRV's FFT differs by the machine in later ones
CALIBRATED = {
    "dp-sgd": "DP-SGD",
    "pe-histogram": "a histogram of votes in each round",
    "saliency": "the scores",
}  # releases whose noise is found


def pld_epsilon(gaussians: Sequence[Release], delta: float, finest: float = 0.0) -> float:
    """Compose with dp-accounting's privacy loss distributions (pessimistic discretisation), an upper bound.

    The interval of the discretisation becomes finer until it suits the epsilon: see `pld_interval`.

    Args:
        gaussians: Gaussian releases, at least one.
        delta: target delta in (0, 1).
        finest: the interval becomes no finer than this.

    Returns:
        The smallest epsilon for which the composition is (epsilon, delta)-DP.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    interval, finer = math.inf, PLD_INTERVAL
    while finer < interval:
        interval = finer
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)
        composed = _composed(accountant, gaussians, delta)
        finer = max(finest, pld_interval(composed, gaussians))
    return composed


def pld_interval(composed: float, gaussians: Sequence[Release]) -> float:
    """Return the interval that losses are rounded up to: `PLD_INTERVAL`, or finer if epsilon is small or steps are many.

    Rounding to an interval h adds at most T h^2 / 4 to the variance of the loss of T steps. Here h <= 0.001 epsilon sqrt(1200/T).
    It is halved, never shrunk by other factors: a grid that refines another one never gives a larger epsilon.

    Args:
        composed: epsilon that the releases compose to, or are to compose to.
        gaussians: the Gaussian ones among the releases give the number of steps.
    """
    wanted = max(composed, LEAST) * math.sqrt(PLD_STEPS / _steps(gaussians))
    return PLD_INTERVAL * 2.0 ** math.floor(math.log2(min(wanted, 1.0)))


def _steps(releases: Sequence[Release]) -> int:
    return sum(release.steps for release in releases if release.mechanism == "gaussian")


def rdp_epsilon(gaussians: Sequence[Release], delta: float) -> float:
    """Compose with dp-accounting's Renyi accountant, a looser upper bound; arguments as `pld_epsilon`."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of every low order that it leaves out: harmless
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    return _composed(accountant, gaussians, delta)


def prv_epsilon(gaussians: Sequence[Release], delta: float) -> float:
    """Compose with Opacus' PRV accountant (Gopi, Lee, Wutschitz 2021), upper bound; imports torch."""
    from opacus.accountants import PRVAccountant

    accountant, scale = PRVAccountant(), pld_epsilon(gaussians, delta)
    accountant.history = [(r.noise_multiplier, r.sampling_rate, r.steps) for r in gaussians]
    errors = {"eps_error": prv_error(scale, gaussians), "delta_error": delta / PRV_DELTA * _small(scale, gaussians)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its RDP bound on the domain warns of low orders: harmless
        return float(accountant.get_epsilon(delta, **errors))


def prv_error(composed: float, gaussians: Sequence[Release]) -> float:
    """Return the eps_error of the PRV accountant: a share of epsilon below 0.98 and above 20, `PRV_ERROR` between them.

    Args:
        composed: epsilon that the releases compose to, or are to compose to.
        gaussians: the Gaussian ones among the releases give the number of steps.
    """
    return max(PRV_ERROR * _small(composed, gaussians), PRV_SHARE * composed)


def _small(composed: float, gaussians: Sequence[Release]) -> float:
    """Return PRV's errors as a share of its usual ones, in (0, 1]."""
    return min(1.0, max(composed, PRV_STEP * math.sqrt(_steps(gaussians))) / PRV_USUAL)


def gdp_epsilon(gaussians: Sequence[Release], delta: float) -> float:
    """Compose by Gaussian DP's central limit theorem (Dong, Roth, Su 2022) with Opacus' formulas; imports torch.

    An approximation, not an upper bound: it is reported and certifies nothing. Infinite above 500, where Opacus ends.
    """
    from opacus.accountants.analysis import gdp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exp overflows where the approximation ends
        squares = sum(_gdp_mu(release) ** 2 for release in gaussians)
    try:
        return float(gdp.eps_from_mu(mu=math.sqrt(squares), delta=delta))
    except ValueError:  # no root in its bracket
        return math.inf


def _gdp_mu(release: Release) -> float:
    from opacus.accountants.analysis import gdp

    if release.sampling_rate == 1:
        return math.sqrt(release.steps) / release.noise_multiplier
    return gdp.compute_mu_poisson(
        steps=release.steps, noise_multiplier=release.noise_multiplier, sample_rate=release.sampling_rate
    )


ACCOUNTANTS: dict[str, Callable[[Sequence[Release], float], float]] = {
    "pld": pld_epsilon,
    "rdp": rdp_epsilon,
    "prv": prv_epsilon,
    "gdp": gdp_epsilon,
}


def epsilon(accountant: str, releases: Sequence[Release], delta: float) -> float:
    """Compose releases with the named accountant.

    Args:
        accountant: key of `ACCOUNTANTS`.
        releases: what is released; none gives 0.
        delta: target delta in (0, 1).

    Returns:
        The composed epsilon; infinite if a release has no guarantee or the releases use up delta by themselves.

    Raises:
        UserError: the accountant is not registered.
    """
    if accountant not in ACCOUNTANTS:
        raise UserError("accountant", accountant, f"must be one of {', '.join(ACCOUNTANTS)}")
    gaussians = [release for release in releases if release.mechanism == "gaussian"]
    whole = [release for release in releases if release.mechanism in ("exponential", "ptr")]
    left = delta - sum(release.delta for release in whole)
    if left <= 0 or len(gaussians) + len(whole) < len(releases):
        return math.inf
    composed = ACCOUNTANTS[accountant](gaussians, left) if gaussians else 0.0
    return composed + sum(release.epsilon for release in whole)


def spent_epsilon(releases: Sequence[Release], delta: float) -> dict[str, float]:
    """Compose releases under every accountant, as records keep it: rounded up to `DIGITS` digits, so still upper bounds.

    Args:
        releases: what was released.
        delta: target delta in (0, 1).

    Returns:
        Accountant -> epsilon, possibly infinite.
    """
    return {name: rounded_up(epsilon(name, releases, delta), DIGITS) for name in ACCOUNTANTS}


def finite(spent: dict[str, float]) -> dict[str, float]:
    """Leave out accountants whose epsilon is not finite: records have numbers only."""
    return {name: value for name, value in spent.items() if math.isfinite(value)}


def rounded_up(value: float, digits: int) -> float:
    """Round a number up to so many significant digits; what is not finite stays."""
    if not math.isfinite(value):
        return value
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
    return float(context.create_decimal(decimal.Decimal(value)))


def event(release: Release) -> "DpEvent":
    """Describe a Gaussian release to dp-accounting: Poisson-subsampled if its rate is below 1, repeated."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    step = GaussianDpEvent(release.noise_multiplier)
    if release.sampling_rate < 1:
        step = PoissonSampledDpEvent(release.sampling_rate, step)
    return SelfComposedDpEvent(step, release.steps)


def _composed(accountant: typing.Any, gaussians: Sequence[Release], delta: float) -> float:  # noqa: ANN401
    for release in gaussians:
        accountant.compose(event(release))
    return float(accountant.get_epsilon(delta))


def _goal(target: float, releases: Sequence[Release]) -> float:
    """Return what PLD may compose the Gaussian ones among releases to, so that no upper bound, rounded up, exceeds the target.

    PRV's upper bound is at most twice its error above the truth, and carries no more than `CARRIED`.
    """
    left = target - _whole(releases)
    return min(left - max(2 * prv_error(left, releases), 10 ** (1 - DIGITS) * target), CARRIED)


def _whole(releases: Sequence[Release]) -> float:
    """Return the epsilon of the releases that are private as a whole."""
    return sum(release.epsilon for release in releases if release.mechanism != "gaussian")


def surely_meets(target: float, delta: float, releases: Sequence[Release]) -> bool:
    """Say, in no time, that releases meet a target; False where only an accountant can tell.

    Without sampling, Gaussian releases compose exactly to one of noise multiplier 1/m, m^2 the sum of steps over squared noise
    multipliers, and Phi(m/2 - epsilon/m) bounds its delta (Balle and Wang 2018, arXiv 1805.06530, theorem 8). Sampling lowers it.
    """
    if any(release.mechanism != "gaussian" for release in releases):
        return False
    goal, m = _goal(target, releases), math.sqrt(sum(release.steps / release.noise_multiplier**2 for release in releases))
    return goal > 0 and math.erfc((goal / m - m / 2) / math.sqrt(2)) / 2 <= delta


def check_target(target: float, delta: float, build: Callable[[float], Sequence[Release]]) -> None:
    """Check that some noise meets a target; arguments as `calibrate`.

    Raises:
        UserError: no noise is enough: what is released besides the last exceeds the target alone, or the last does with the
            largest noise multiplier tried, 2000.
    """
    highest = build(LARGEST_SIGMA)
    goal = _goal(target, highest)
    if goal <= 0 or epsilon("pld", highest, delta) - _whole(highest) > goal:
        raise UserError("epsilon", target, _infeasible(target, goal, highest, delta))


def calibrate(target: float, delta: float, build: Callable[[float], Sequence[Release]]) -> float:
    """Find the smallest noise multiplier whose composition meets the target under PLD and PRV.

    The search (by Brent's method) aims under PLD at twice PRV's error below the target, so that Opacus' PRV
    upper bound certifies the plan too, and returns a value on the safe side. It ends where at least 99 % of the target is
    spent, as the larger of the two bounds says. It aims at an epsilon of `CARRIED` at most, beside releases that are private
    as a whole: PRV carries no further. A looser target is then not used up. Nor is one below `PRV_STEP` times the root of the
    steps, where PRV gets no finer.

    Args:
        target: target epsilon, at least `LEAST`.
        delta: target delta.
        build: noise multiplier of DP-SGD, or of votes -> every release that the target has to hold, that one the last.

    Returns:
        A noise multiplier within the last of `SIGMA_TOLERANCES` that was used above the smallest feasible one; below 0.4 within
        that share of it.

    Raises:
        UserError: no noise is enough; see `check_target`.
    """
    from scipy.optimize import brentq

    check_target(target, delta, build)
    highest = build(LARGEST_SIGMA)
    goal, left = _goal(target, highest), delta - sum(release.delta for release in highest if release.mechanism != "gaussian")
    finest = pld_interval(goal, highest)

    def excess(sigma: float) -> float:
        return pld_epsilon([release for release in build(sigma) if release.mechanism == "gaussian"], left, finest) - goal

    lower, upper = _bracket(excess)
    for tolerance in SIGMA_TOLERANCES:
        step = tolerance * (1 if lower >= USUAL_SIGMA else lower)
        sigma = brentq(excess, lower, upper, xtol=step)
        while (beyond := excess(sigma)) > 0:
            sigma += step
        if goal + beyond >= USED_UP * goal:
            break
    return sigma


def _bracket(excess: Callable[[float], float]) -> tuple[float, float]:
    """Find two noise multipliers between which the search goes on: the lower one is not enough, the upper one is.

    Args:
        excess: noise multiplier -> by how much it exceeds what it may cost.
    """
    lower, upper = USUAL_SIGMA, 1.0
    while excess(lower) <= 0:  # the loss of a step grows without end as its noise shrinks
        lower, upper = 0.8 * lower, lower
    gap = upper - lower
    while excess(upper) > 0:
        gap *= 2
        lower, upper = upper, upper + gap
    return lower, upper


def _infeasible(target: float, goal: float, releases: Sequence[Release], delta: float) -> str:
    fixed = list(releases[:-1])
    needed = _least_target(fixed or releases, delta)
    most = f"{CALIBRATED[releases[-1].name]} with noise multiplier {LARGEST_SIGMA:g} costs"
    scored = len(fixed) == 1 and fixed[0].name == "saliency"
    what = "the saliency release alone costs" if scored else "the earlier releases alone cost" if fixed else most
    told = f"cannot be met: {what} {needed:g} at delta {delta:.2e}"
    if goal == CARRIED:
        return f"{told}, and accountants carry {CARRIED:g}: leave earlier releases out, or use other images"
    remedy = f"{told}; raise epsilon above {needed:g}"
    if not scored or fixed[0].mechanism != "gaussian" or goal <= 0:
        return remedy

    alone = calibrate(target, delta, lambda sigma: [replace(fixed[0], noise_multiplier=sigma)])
    return f"{remedy}, or sigma_s from {fixed[0].noise_multiplier:g} above {alone:.2f}"


def _least_target(releases: Sequence[Release], delta: float) -> float:
    """Return the target whose `_goal` the releases just meet, rounded up to four digits."""
    whole = _whole(releases)
    composed = epsilon("pld", releases, delta) - whole
    needed = composed
    for _ in range(9):  # PRV's error is at most a hundredth of epsilon: each time two digits more are right
        needed = composed + 2 * prv_error(needed, releases)
    return rounded_up(whole + needed, 4)
