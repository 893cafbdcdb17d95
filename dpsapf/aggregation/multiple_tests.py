"""t tests of mean differences, and Holm's correction for many of them at once (Holm 1979, Scand. J. Statist. 6:65-70)."""

import typing
from collections.abc import Sequence

import numpy as np
from scipy import stats

from dpsapf.aggregation.aggregate import CONFIDENCE

LEVEL = 1 - CONFIDENCE  # of a family of tests: the chance that any of its true null hypotheses is rejected


class Corrected(typing.NamedTuple):
    """Holm's correction of a family of p-values.

    Attributes:
        p: corrected p-values in [0, 1], float [m]; not a number where there was no test.
        levels: what each interval's error may be so that it decides exactly where ``p`` is at most `LEVEL`, float [m].
    """

    p: np.ndarray
    levels: np.ndarray


def p_value(mean: float, sd: float, n: int, bound: float = 0.0) -> float:
    """Return the two-sided p-value of Student's t test that a mean is ``bound``.

    Args:
        mean: of ``n`` values; of paired differences, for a paired test.
        sd: their sample standard deviation; 0 decides for certain.
        n: how many; fewer than two have no test, and give not a number.
        bound: the mean under the null hypothesis, in the unit of ``mean``.
    """
    if n < 2:
        return np.nan
    if sd == 0:
        return float(mean == bound)
    return float(2 * stats.t.sf(abs(mean - bound) / (sd / n**0.5), n - 1))


def half_width(sd: float, n: int, level: float = LEVEL) -> float:
    """Return the half width of the interval of a mean of ``n`` values whose error is ``level``; not a number for n < 2."""
    return float(stats.t.isf(level / 2, n - 1) * sd / n**0.5) if n > 1 else np.nan


def holm(p_values: Sequence[float]) -> Corrected:
    """Correct a family of p-values by Holm's step-down method: the k-th smallest of m is multiplied by m - k + 1.

    Args:
        p_values: in [0, 1]; what is not a number was not tested and is not of the family.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    steps = np.arange(len(order), 0, -1)
    raised = np.maximum.accumulate(steps * p[order])
    corrected, levels = np.full(p.shape, np.nan), np.full(p.shape, np.nan)
    corrected[order] = np.minimum(raised, 1)
    with np.errstate(invalid="ignore"):
        levels[order] = LEVEL * np.where(raised > 0, p[order] / raised, 1 / steps)
    return Corrected(corrected, levels)
