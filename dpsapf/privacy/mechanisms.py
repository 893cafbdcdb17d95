"""How saliency scores leave the private side: each mechanism with its proof, its accounting and its release.

``sigma_s`` sets the cost of all of them: the Gaussian's noise multiplier, or that of the Gaussian with the same
zero-concentrated DP cost rho = 1/(2 sigma_s^2) (Bun and Steinke 2016, arXiv 1605.02065).
"""

import math
import sys
import typing
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np

from dpsapf.experiment.records import Release
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    from dpsapf.privacy.meter import Meter  # imports torch, which a plan does not need
    from dpsapf.privacy.noise import NoiseSource
    from dpsapf.privacy.values import Private, Released

DELTA_SHARE = 0.1  # what the exponential mechanism or PTR takes of the run's delta


class Refused(UserError):
    """A mechanism spent its epsilon and released nothing but this refusal."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What is selected, data-free.

    Attributes:
        unit_of: unit (matrix, layer or block) of each candidate, int64 [M], numbered from 0.
        kept: units to select, k.
        sensitivity: L2 sensitivity of the scores of all candidates together; None without a bound.
        unit_sensitivity: largest amount by which one image raises one unit's score; None if it may lower one.
    """

    unit_of: np.ndarray
    kept: int
    sensitivity: float | None
    unit_sensitivity: float | None

    def monotone(self) -> float:
        """Return the unit sensitivity.

        Raises:
            UserError: an image may lower a score, which the mechanisms that release a ranking do not allow for.
        """
        if self.unit_sensitivity is None:
            raise UserError(
                "mechanism", "exponential or ptr", "needs a score that no image lowers: use another score, or gaussian"
            )
        return self.unit_sensitivity

    def unit_scores(self, scores: "Private") -> np.ndarray:
        """Sum scores, one tensor [M], over units. Private."""
        (values,) = scores.opened()
        return np.bincount(self.unit_of, weights=values.cpu().numpy())

    def released(self, units: np.ndarray) -> "Released":
        """Give each candidate its unit's released value over the unit's size, so that sums over units give the values back."""
        import torch

        from dpsapf.privacy.values import Released

        return Released((torch.from_numpy((units / np.bincount(self.unit_of))[self.unit_of]),))


class Mechanism(typing.Protocol):
    """A way to release scores."""

    def plan(self, ranking: Ranking, sigma_s: float | None, rate: float, delta: float) -> Release:
        """Describe the release, without data."""

    def release(self, scores: "Private", ranking: Ranking, planned: Release, source: "NoiseSource", meter: "Meter") -> "Released":
        """Release scores, one tensor [M]: noisy ones, or the order of the selected ones (k to 1) and 0 for the rest.

        Noise comes from ``source`` by ``meter``, which counts it.
        """


class Gaussian:
    """Noise on every score; any selection from them, at any ratio and level, is post-processing.

    Proof: one image changes the scores by an L2 norm of at most the sensitivity, so this is the Gaussian mechanism,
    Poisson-subsampled where the rate is below 1. On a computer: what an image adds is rounded down to the grid, so that sums are
    exact (`dpsapf.privacy.meter.Meter.rows`); or the clipping keeps room for the grid. Noise: see
    `dpsapf.privacy.noise.add_gaussian_noise`.
    """

    def plan(self, ranking: Ranking, sigma_s: float | None, rate: float, delta: float) -> Release:
        """Describe one Poisson-subsampled Gaussian release."""
        return Release(name="saliency", noise_multiplier=sigma_s, sensitivity=ranking.sensitivity, sampling_rate=rate, steps=1)

    def release(self, scores: "Private", ranking: Ranking, planned: Release, source: "NoiseSource", meter: "Meter") -> "Released":
        """Add noise to the scores."""
        return meter.gaussian(scores, planned.noise_multiplier, planned.sensitivity, source)


class Exponential:
    """Gumbel peeling: k draws without replacement, each by the exponential mechanism.

    Proof: adding an image raises every unit's score by between 0 and D, the unit sensitivity. Drawing a unit with
    probability proportional to exp(e s/D) changes log-probabilities by an amount whose range over units is at most
    e: e-bounded range, hence e^2/8-zCDP (Cesar and Rogers 2021, arXiv 2004.07223), and k draws cost k e^2/8.
    Adding Gumbel noise of scale D/e once and taking the k largest, in order, is the same as the k draws (Durfee and
    Rogers 2019, arXiv 1905.04273). With rho = 1/(2 sigma_s^2), e = 2/(sigma_s sqrt(k)); rho-zCDP is (rho + 2 sqrt(rho
    ln(1/d)), d)-DP.

    On a computer: sums of scores are exact (`dpsapf.privacy.meter.Meter.rows`), noise is made of 128 random bits, it and its sum
    with a score have 50 digits, and nothing leaves but an order. It differs from that of exact noise with a chance below 2^-100
    for each pair.
    """

    def plan(self, ranking: Ranking, sigma_s: float | None, rate: float, delta: float) -> Release:
        """Describe the k draws as one (epsilon, delta) release."""
        rho, share = 1 / (2 * sigma_s**2), DELTA_SHARE * delta
        return Release(
            name="saliency",
            mechanism="exponential",
            noise_multiplier=sigma_s,
            sensitivity=ranking.monotone(),
            sampling_rate=rate,
            steps=1,
            epsilon=rho + 2 * math.sqrt(rho * math.log(1 / share)),
            delta=share,
        )

    def release(self, scores: "Private", ranking: Ranking, planned: Release, source: "NoiseSource", meter: "Meter") -> "Released":
        """Release the k units that win, in order."""
        units = ranking.unit_scores(scores)
        noisy = meter.gumbel(units, ranking.kept, planned.noise_multiplier, planned.sensitivity, source)
        first = sorted(range(len(noisy)), key=noisy.__getitem__, reverse=True)[: ranking.kept]
        order = np.zeros(len(noisy))
        order[first] = np.arange(ranking.kept, 0, -1)
        return ranking.released(order)


class ProposeTestRelease:
    """The exact top k, if a noisy test finds that no single image could change it; else a refusal, never a fallback.

    Proof: adding an image raises every unit's score by between 0 and D, so every order statistic rises by between 0
    and D, and the gap between the k-th and the (k+1)-th, over D, changes by at most 1. Where it exceeds 1, all
    neighbours have the same top k. Release it if gap/D + Laplace(1/e) > 1 + ln(1/(2 d))/e. If the gap is at most D,
    that happens with probability at most d; otherwise only the test, which is e-DP, tells neighbours apart. So the
    release is (e, d)-DP (Dwork and Lei 2009), a refusal included. With rho = 1/(2 sigma_s^2), e = 1/sigma_s. The noise is made
    as that of `Exponential`.
    """

    def plan(self, ranking: Ranking, sigma_s: float | None, rate: float, delta: float) -> Release:
        """Describe the test and the selection as one (epsilon, delta) release."""
        return Release(
            name="saliency",
            mechanism="ptr",
            noise_multiplier=sigma_s,
            sensitivity=ranking.monotone(),
            sampling_rate=rate,
            steps=1,
            epsilon=1 / sigma_s,
            delta=DELTA_SHARE * delta,
        )

    def release(self, scores: "Private", ranking: Ranking, planned: Release, source: "NoiseSource", meter: "Meter") -> "Released":
        """Release the top k, unordered.

        Raises:
            Refused: the test failed; epsilon is spent all the same.
        """
        from dpsapf.privacy.noise import DIGITS

        units = ranking.unit_scores(scores)
        ordered = sorted(units.tolist(), reverse=True)
        next_best = ordered[ranking.kept] if ranking.kept < len(units) else -sys.float_info.max
        with localcontext(prec=DIGITS):
            gap = (Decimal(ordered[ranking.kept - 1]) - Decimal(next_best)) / Decimal(planned.sensitivity)
            threshold = 1 + (1 / (2 * Decimal(planned.delta))).ln() / Decimal(planned.epsilon)
        if not meter.laplace(gap, planned.noise_multiplier, planned.sensitivity, source) > threshold:
            remedy = (
                f"refused: the gap after the {ranking.kept} best is not certainly stable; epsilon {planned.epsilon:.3g} is "
                "spent all the same. Use mechanism gaussian or exponential, a smaller sigma_s or another ratio"
            )
            raise Refused("mechanism", "ptr", remedy)
        return ranking.released((units > next_best).astype(float))


class Exact:
    """No noise at all, for the method without a guarantee: the plan admits it only where epsilon is infinite."""

    def plan(self, ranking: Ranking, sigma_s: float | None, rate: float, delta: float) -> Release:
        """Describe a release without a guarantee."""
        return Release(name="saliency", mechanism="none", sensitivity=None, sampling_rate=rate, steps=1)

    def release(self, scores: "Private", ranking: Ranking, planned: Release, source: "NoiseSource", meter: "Meter") -> "Released":
        """Return the scores."""
        return meter.exact(scores)


MECHANISMS: dict[str, Mechanism] = {
    "gaussian": Gaussian(),
    "exponential": Exponential(),
    "ptr": ProposeTestRelease(),
    "none": Exact(),
}


def mechanism(name: str) -> Mechanism:
    """Look a mechanism up.

    Raises:
        UserError: the name is not registered; names the known ones.
    """
    if name not in MECHANISMS:
        raise UserError("mechanism", name, f"must be one of {', '.join(MECHANISMS)}")
    return MECHANISMS[name]
