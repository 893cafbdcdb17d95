"""Welch's comparison of two means: seeds on either side are independent, and each side has a spread of its own.

Welch 1947, Biometrika 34:28-35. Runs are not paired by seed: over pairs of the same seed the two sides do not move together, so
that pairs would only cost degrees of freedom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

POWER = 0.8  # share of studies that would show what is there
MOST = 1000  # seeds that are worth naming
CLEAR = 8.0  # standard errors beyond the critical value at which the power is 1 to 15 digits


@dataclass(frozen=True)
class Difference:
    """The mean of one side minus that of the other.

    Attributes:
        mean: the difference, in the unit of the values.
        error: its standard error; not a number where a side has a single value.
        freedom: degrees of freedom by Welch and Satterthwaite.
        spread: standard deviation of a difference of two single values, one of each side.
    """

    mean: float
    error: float
    freedom: float
    spread: float

    def above(self, bound: float) -> float:
        """Return the one-sided p-value against a true difference of at most ``bound``; not a number without an error."""
        if self.error == 0:
            return float(self.mean <= bound)
        return float(stats.t.sf((self.mean - bound) / self.error, self.freedom))

    def below(self, bound: float) -> float:
        """Return the one-sided p-value against a true difference of at least ``bound``; not a number without an error."""
        return Difference(-self.mean, self.error, self.freedom, self.spread).above(-bound)

    def two_sided(self) -> float:
        """Return the two-sided p-value against no difference; not a number without an error."""
        return min(1.0, 2 * min(self.above(0), self.below(0))) if self.error >= 0 else math.nan

    def half_width(self, level: float) -> float:
        """Return the half width of the two-sided interval whose error is ``level``, in (0, 1)."""
        return float(stats.t.isf(level / 2, self.freedom) * self.error) if self.error else 0.0


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare two samples, float [n] and [m]; a side of one value has no spread, and so there is no error."""
    means, sizes = [np.mean(side) for side in (ours, theirs)], [len(side) for side in (ours, theirs)]
    variances = [float(np.var(side, ddof=1)) if len(side) > 1 else math.nan for side in (ours, theirs)]
    parts = [variance / size for variance, size in zip(variances, sizes, strict=True)]
    error, spread = math.sqrt(sum(parts)), math.sqrt(sum(variances))
    squares = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True) if size > 1)
    freedom = sum(parts) ** 2 / squares if squares else math.inf
    return Difference(float(means[0] - means[1]), error, freedom, spread)


def against_number(ours: Sequence[float], number: float) -> Difference:
    """Compare a sample, float [n], with a number that is taken as exact: Student's t."""
    sd = float(np.std(ours, ddof=1)) if len(ours) > 1 else math.nan
    return Difference(float(np.mean(ours)) - number, sd / math.sqrt(len(ours)), len(ours) - 1, sd)


def seeds_needed(spread: float, gaps: Sequence[float], level: float) -> float:
    """Return how many seeds a side would show, in `POWER` of the studies, that the difference is within some bounds.

    Args:
        spread: `Difference.spread`.
        gaps: distances from the true difference to each bound, all positive.
        level: error of each one-sided test.

    Returns:
        The least number from 2 to `MOST`; infinity if none of them is enough, or the spread is not known.
    """
    if math.isnan(spread):
        return math.inf
    low, high = 1, 2
    while _power(high, spread, gaps, level) < POWER:
        low, high = high, 2 * high
        if low >= MOST:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, spread, gaps, level) >= POWER else (middle, high)
    return high


def _power(seeds: int, spread: float, gaps: Sequence[float], level: float) -> float:
    freedom = 2 * (seeds - 1)
    critical = stats.t.isf(level, freedom)
    shifts = [gap * math.sqrt(seeds) / spread if spread else math.inf for gap in gaps]
    shown = [1.0 if shift > critical + CLEAR else float(stats.nct.sf(critical, freedom, shift)) for shift in shifts]
    return sum(shown) - (len(gaps) - 1)
