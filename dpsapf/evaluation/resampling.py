"""Bootstrap intervals of scores over the synthetic images."""

from collections.abc import Callable

import numpy as np

from dpsapf.evaluation.gaussians import Features, Moments


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, seed: int, draws: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a bootstrap interval of a statistic of ``count`` images.

    Args:
        statistic: of rows at positions int64 [count], which may repeat.
        count: number of images.
        seed: of the draws.
        draws: number of draws.
        confidence: in (0, 1).
    """
    raise NotImplementedError


def frechet_interval(real: Moments, synthetic: Features, seed: int, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return `bootstrap_interval` of FID over the synthetic images, without a matrix root per draw."""
    raise NotImplementedError
