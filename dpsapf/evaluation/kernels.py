"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features."""

import numpy as np

from dpsapf.evaluation.gaussians import Features, finite
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track


def kernel_distance(real: Features, synthetic: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Return the kernel distance, averaged over subsets, and its standard deviation over them (Binkowski et al. 2018).

    The kernel is (x y / D + 1)^3, the estimate unbiased, so that it can be negative. Products are float64.

    Args:
        real: fp32 [N, D].
        synthetic: fp32 [M, D].
        subsets: number of subsets, at least 1.
        size: images of each kind in a subset, drawn without replacement, 2 to min(N, M).
        seed: of the subsets, in [0, 2^32). They are those that clean-fid draws after `np.random.seed` of it.

    Raises:
        UserError: there are fewer images than ``size``, or a feature is no number.
    """
    fewest = min(len(real), len(synthetic))
    if not 2 <= size <= fewest:
        raise UserError("size of KID's subsets", size, f"must be 2 to {fewest}, the number of images")
    values, generator = [], np.random.RandomState(seed)
    for _ in track(range(subsets), "kernel distance", "subset"):
        drawn = [features[generator.choice(len(features), size, replace=False)] for features in (synthetic, real)]
        values.append(discrepancy(*(rows.astype(np.float64) for rows in reversed(drawn))))
    return float(np.mean(finite(np.array(values)))), float(np.std(values))


def discrepancy(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the unbiased estimate of the squared discrepancy (Gretton et al. 2012) of two sets float64 [n, D], [m, D]."""
    within = sum(_mean_of_others(_kernel(rows, rows)) for rows in (real, synthetic))
    return within - 2 * _kernel(real, synthetic).mean()


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _mean_of_others(kernel: np.ndarray) -> float:
    count = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (count * (count - 1))
