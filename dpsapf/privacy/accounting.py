"""Composition of a run's releases under three accountants, and the calibration of DP-SGD's noise.

Every release is a Poisson-subsampled Gaussian (`dpsapf.formats.Release`); the neighbouring relation
is adding or removing one image. PLD and RDP are dp-accounting's, PRV is Opacus'.
"""

import logging
import typing
import warnings
from collections.abc import Callable, Sequence

from dpsapf.errors import UserError
from dpsapf.formats import Release

if typing.TYPE_CHECKING:
    from dp_accounting import DpEvent

RELATION = "add or remove one image"
UNIT = "one training image with its label"
PRV_ERROR = 0.005  # eps_error of the PRV accountant: its estimate may be off by this, its upper bound by twice this
MARGIN = 2 * PRV_ERROR  # what calibration leaves to the target, so that PRV's upper bound certifies the plan too
PLD_INTERVAL = 1e-3  # pessimistic discretisation of the privacy loss: 6e-6 above 1e-4's epsilon at epsilon 10
SIGMA_RANGE = (0.4, 2000.0)  # below 0.4 a step is hardly private and its PLD large
SIGMA_TOLERANCE = 1e-3


def pld_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Compose releases with dp-accounting's privacy loss distributions (pessimistic discretisation).

    Args:
        releases: what is released; none gives 0.
        delta: target delta in (0, 1).

    Returns:
        The smallest epsilon for which the composition is (epsilon, delta)-DP, an upper bound.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=PLD_INTERVAL)
    return _composed(accountant, releases, delta)


def rdp_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Compose releases with dp-accounting's Renyi accountant; arguments and result as `pld_epsilon`."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of every low order that it leaves out: harmless
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    return _composed(accountant, releases, delta)


def prv_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Compose releases with Opacus' PRV accountant (Gopi, Lee, Wutschitz 2021), upper bound; imports torch."""
    if not releases:
        return 0.0
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(r.noise_multiplier, r.sampling_rate, r.steps) for r in releases]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its RDP bound on the domain warns of low orders: harmless
        return float(accountant.get_epsilon(delta, eps_error=PRV_ERROR))


ACCOUNTANTS: dict[str, Callable[[Sequence[Release], float], float]] = {
    "pld": pld_epsilon,
    "rdp": rdp_epsilon,
    "prv": prv_epsilon,
}


def epsilon(accountant: str, releases: Sequence[Release], delta: float) -> float:
    """Compose releases with the named accountant.

    Raises:
        UserError: the accountant is not registered.
    """
    if accountant not in ACCOUNTANTS:
        raise UserError("accountant", accountant, f"must be one of {', '.join(ACCOUNTANTS)}")
    return ACCOUNTANTS[accountant](releases, delta)


def event(release: Release) -> "DpEvent":
    """Describe a release to dp-accounting: a Gaussian, Poisson-subsampled if its rate is below 1, repeated."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    step = GaussianDpEvent(release.noise_multiplier)
    if release.sampling_rate < 1:
        step = PoissonSampledDpEvent(release.sampling_rate, step)
    return SelfComposedDpEvent(step, release.steps)


def _composed(accountant: typing.Any, releases: Sequence[Release], delta: float) -> float:  # noqa: ANN401
    if not releases:
        return 0.0
    for release in releases:
        accountant.compose(event(release))
    return float(accountant.get_epsilon(delta))


def calibrate(target: float, delta: float, build: Callable[[float], Sequence[Release]]) -> float:
    """Find the smallest noise multiplier whose composition meets the target under PLD.

    The search (dp-accounting's, by Brent's method) aims at ``target - MARGIN`` so that Opacus' PRV
    upper bound certifies the plan too, and returns a value on the safe side.

    Args:
        target: target epsilon > 0.
        delta: target delta.
        build: noise multiplier of DP-SGD -> every release of the run, the saliency release among them.

    Returns:
        A noise multiplier within `SIGMA_TOLERANCE` above the smallest feasible one, and never below 0.4.

    Raises:
        UserError: no noise is enough, because what is released besides DP-SGD exceeds the target alone.
    """
    from dp_accounting import ComposedDpEvent, NeighboringRelation, calibrate_dp_mechanism, mechanism_calibration
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    goal, highest = target - MARGIN, build(SIGMA_RANGE[1])
    if goal <= 0 or pld_epsilon(highest, delta) > goal:
        raise UserError("epsilon", target, _infeasible(highest, delta))
    if pld_epsilon(build(SIGMA_RANGE[0]), delta) <= goal:
        return SIGMA_RANGE[0]
    return calibrate_dp_mechanism(
        lambda: PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=PLD_INTERVAL),
        lambda sigma: ComposedDpEvent([event(release) for release in build(sigma)]),
        goal,
        delta,
        bracket_interval=mechanism_calibration.LowerEndpointAndGuess(SIGMA_RANGE[0], 1.0),
        tol=SIGMA_TOLERANCE,
    )


def _infeasible(releases: Sequence[Release], delta: float) -> str:
    fixed = [release for release in releases if release.name != "dp-sgd"]
    spent = pld_epsilon(fixed, delta) + MARGIN
    return (
        f"cannot be met: the saliency release alone costs {spent:.3f} at delta {delta:.2e}; "
        f"raise epsilon above {spent:.3f} or raise sigma_s"
    )
