"""When training has collapsed, and the largest learning rate that survives. Defined here alone.

A setting has collapsed if its images are worse than those of the public model as it is (the floor, no-finetune): its mean
FID exceeds the floor's by more than the seeds' spread, which is two standard errors of the difference. Means and spreads
are of log FID: a collapsed run's FID is anything from twice to a hundred times the floor's, and the spread of such
numbers is as large as their mean, so that on the plain scale no collapse would ever exceed it. A single seed has no
spread: what is known of the other side counts, and with a single seed on both sides FIDs are compared as they are.

The edge is the learning rate up to which nothing has collapsed, at it or at any smaller rate: once collapsed stays
collapsed. Between the last good rate and the first collapsed one it is interpolated, linearly in log rate and log FID, to
where FID meets the limit. If nothing collapses, the edge is above the largest rate (``>``); if the smallest rate
collapses, it is below that (``<``).
"""

import math
import typing
from collections.abc import Sequence

import numpy as np
from scipy import stats

from dpsapf.aggregation.aggregate import CONFIDENCE

ERRORS = 2.0  # standard errors of the difference that a collapse has to exceed
OPPOSITE = {">": "<", "<": ">", "": "", "?": "?"}


class Bound(typing.NamedTuple):
    """A positive number, or what is known of it.

    Attributes:
        value: the number, or its bound; not a number if nothing is known.
        sign: empty if ``value`` is the number, ``>`` or ``<`` if the number is beyond it, ``?`` if nothing is known.
    """

    value: float
    sign: str = ""


class LogMean(typing.NamedTuple):
    """A geometric mean over seeds, with its 95 % interval (Student's t on logs; nan for one seed, or a mean that is a bound)."""

    mean: float
    sign: str
    low: float
    high: float
    seeds: int


def excess(fid: Sequence[float], floor: Sequence[float]) -> float:
    """Return a setting's mean log FID less the largest that is no collapse; it has collapsed if this is above 0.

    Args:
        fid: of the setting's seeds; positive, at least one.
        floor: of the floor's seeds; likewise.
    """
    own, other = np.log(fid), np.log(floor)
    return float(own.mean() - other.mean() - ERRORS * math.sqrt(_squared_error(own) + _squared_error(other)))


def _squared_error(values: np.ndarray) -> float:
    return values.var(ddof=1) / len(values) if len(values) > 1 else 0.0


def edge(rates: Sequence[float], excesses: Sequence[float]) -> Bound:
    """Return the edge of collapse.

    Args:
        rates: learning rates, positive, in any order; at least one.
        excesses: of `excess`, one per rate.
    """
    rates, excesses = (np.asarray(values, float)[np.argsort(rates)] for values in (rates, excesses))
    first = int(np.argmax(excesses > 0))
    if excesses[first] <= 0:
        return Bound(float(rates[-1]), ">")
    if first == 0:
        return Bound(float(rates[0]), "<")
    last = first - 1
    share = excesses[last] / (excesses[last] - excesses[first])
    return Bound(float(rates[last] * (rates[first] / rates[last]) ** share))


def factor(one: Bound, other: Bound) -> Bound:
    """Return one edge over another of the same seed; ``?`` if their bounds leave it open."""
    signs = {one.sign, OPPOSITE[other.sign]} - {""}
    return _bounded(one.value / other.value, signs)


def log_mean(values: Sequence[Bound]) -> LogMean:
    """Average over seeds, in logs; bounds stand for their seeds, so that the mean is a bound of the same kind.

    Args:
        values: one per seed; at least one.
    """
    logs = np.log([value.value for value in values])
    mean, sign = _bounded(math.exp(logs.mean()), {value.sign for value in values} - {""})
    half = math.nan
    if len(logs) > 1 and not sign:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return LogMean(mean, sign, mean * math.exp(-half), mean * math.exp(half), len(logs))


def _bounded(value: float, signs: set[str]) -> Bound:
    if len(signs) > 1 or "?" in signs:
        return Bound(math.nan, "?")
    return Bound(value, *signs)
