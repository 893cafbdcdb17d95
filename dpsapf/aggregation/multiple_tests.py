"""Holm's correction for many tests at once (Holm 1979, Scand. J. Statist. 6:65-70)."""

from collections.abc import Sequence

import numpy as np

from dpsapf.aggregation.aggregate import CONFIDENCE

LEVEL = 1 - CONFIDENCE  # of a family of tests: the chance that any of its true null hypotheses is rejected


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct a family of p-values by Holm's step-down method: the k-th smallest of m is multiplied by m - k + 1.

    Args:
        p_values: in [0, 1]; what is not a number was not tested and is not of the family.

    Returns:
        Corrected p-values in [0, 1], float [m]; not a number where there was no test.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    corrected = np.full(p.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]), 1)
    return corrected
