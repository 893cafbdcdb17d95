"""How well the best imaginable attacker can tell whether one unit was among the private ones.

Differential privacy bounds every attacker: whoever wrongly names a share a of the units that were not there finds at most a
share 1 - f(a) of those that were, where f is the trade-off function of the releases (Dong, Roth, Su 2022, arXiv 1905.02383).
It comes from the privacy loss distribution of their composition by Algorithm 1 of Kulynych, Gomez, Kaissis, du Pin Calmon and
Troncoso (2024, arXiv 2407.02191), which riskcal implements. The attacker knows everything but whether the unit was there: all
other units, the model, the noise's law.
"""

import typing
from collections.abc import Sequence

from dpsapf.experiment.records import Release
from dpsapf.privacy.accounting import PLD_INTERVAL
from dpsapf.release.records import AttackBounds

if typing.TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
METHOD = (
    "each release is a privacy loss distribution of Google's dp-accounting (adding or removing one sampled term; losses rounded "
    f"up to steps of {PLD_INTERVAL:g}; a release known by its epsilon and delta only is taken at its worst); they are composed, "
    "and riskcal gives the trade-off curve (Kulynych et al. 2024, arXiv 2407.02191, Algorithm 1; on trade-off curves: Dong, Roth "
    "and Su 2022, arXiv 1905.02383)."
)


def attack_bounds(releases: Sequence[Release]) -> AttackBounds:
    """Bound every membership attack on releases, all of which the attacker sees.

    Args:
        releases: gaussian, exponential or ptr; none gives what guessing gives.

    Returns:
        Upper bounds in [0, 1]: for each of `FALSE_POSITIVE_RATES` the largest true-positive rate, and the largest difference
        of the two rates at any threshold.
    """
    import numpy as np
    from dp_accounting.pld.privacy_loss_distribution import identity
    from riskcal.analysis import get_advantage_from_pld, get_beta_from_pld

    composed = identity(value_discretization_interval=PLD_INTERVAL)
    for release in releases:
        composed = composed.compose(loss_distribution(release))
    missed = get_beta_from_pld(composed, np.array(FALSE_POSITIVE_RATES))
    found = np.clip(1 - missed, 0.0, 1.0)
    return AttackBounds(
        true_positive_rate={f"{rate:g}": float(value) for rate, value in zip(FALSE_POSITIVE_RATES, found, strict=True)},
        advantage=min(1.0, max(0.0, float(get_advantage_from_pld(composed)))),
    )


def loss_distribution(release: Release) -> "PrivacyLossDistribution":
    """Return the privacy loss distribution of one release, all of its steps; its losses are rounded up.

    Raises:
        ValueError: the release is exact, and loses everything.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.common import DifferentialPrivacyParameters
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_privacy_parameters

    if release.mechanism == "none":
        raise ValueError("an exact release has no privacy loss distribution")
    if release.mechanism != "gaussian":
        whole = DifferentialPrivacyParameters(release.epsilon, release.delta)
        return from_privacy_parameters(whole, value_discretization_interval=PLD_INTERVAL)
    step = from_gaussian_mechanism(
        release.noise_multiplier,
        sampling_prob=release.sampling_rate,
        value_discretization_interval=PLD_INTERVAL,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    return step.self_compose(release.steps)
