"""How well the best imaginable attacker can tell whether one unit was among the private ones.

The attacker knows everything but that: all other units, the model, the noise's law. Releases that are (e, d(e))-private at every
e bound the share of units that were there and are found, at each share a of those that were not and are named: it is at most
e^e a + d(e), and at most 1 - e^-e (1 - d(e) - a). The least of these over e is the trade-off curve (the primal-dual relation of
Dong, Roth, Su 2022, arXiv 1905.02383); what it says of attacks is told by Kulynych, Gomez, Kaissis, du Pin Calmon, Troncoso
(2024, arXiv 2407.02191). d(e) comes from the composed privacy loss distributions, each bound by riskcal.

riskcal's own way from these distributions to the curve (`get_beta_from_pld`) is not used: for sampled releases together with one
that is known by its epsilon and delta, it takes the better of two curves where the worse one counts, and an attack beats it
(`tests/release/test_attacks.py` makes that attack).
"""

import typing
from collections.abc import Sequence

from dpsapf.experiment.records import Release
from dpsapf.privacy.accounting import PLD_INTERVAL
from dpsapf.release.records import AttackBounds

if typing.TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
LARGEST, SPACING = 40.0, 0.005  # epsilons at which bounds are looked for; each one is valid, more of them only come nearer
METHOD = (
    "each release is a privacy loss distribution of Google's dp-accounting (adding or removing one sampled term; losses rounded "
    f"up to steps of {PLD_INTERVAL:g}; a release known by its epsilon and delta only is taken at its worst); they are composed; "
    "each epsilon from 0 to "
    f"{LARGEST:g} with its delta bounds the attack (riskcal), and the least bound counts (on trade-off curves: Dong, Roth and Su "
    "2022, arXiv 1905.02383; on attacks: Kulynych et al. 2024, arXiv 2407.02191)."
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
    from riskcal.analysis import get_advantage_from_pld, get_beta_from_adp

    composed = identity(value_discretization_interval=PLD_INTERVAL)
    for release in releases:
        composed = composed.compose(loss_distribution(release))
    epsilons = np.arange(0.0, LARGEST, SPACING)
    deltas = np.array(composed.get_delta_for_epsilon(list(epsilons)))
    missed = {rate: float(np.max(get_beta_from_adp(epsilons, deltas, rate))) for rate in FALSE_POSITIVE_RATES}
    return AttackBounds(
        true_positive_rate={f"{rate:g}": min(1.0, 1 - least) for rate, least in missed.items()},
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
