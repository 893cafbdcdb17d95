"""Two sets of features as two Gaussians: their moments, the Frechet distance (FID) and its limit for many images.

A constant is taken from all features before they are multiplied: a covariance does not change by it, and rounding is relative
to how features spread, not to how far they are from 0.
"""

from dataclasses import dataclass

import numpy as np

from dpsapf.support.arrays import Rows
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator

Features = np.ndarray | Rows
"""Features fp32 [N, D], in memory or in a file, read a chunk of rows at a time."""

CHUNK = 2048  # rows that are read and multiplied at once
SMALLEST_SHARE = 10  # the regression of `frechet_infinity` starts at a tenth of the images


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        count: N, number of images.
        mean: float64 [D].
        covariance: float64 [D, D], divided by N - 1.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray


def moments(features: Features) -> Moments:
    """Return mean and covariance of features [N, D], in one pass.

    Raises:
        UserError: there are fewer than two.
    """
    raise NotImplementedError


def frechet(one: Moments, other: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians (Heusel et al. 2017), at least 0."""
    raise NotImplementedError


def frechet_infinity(real: Moments, synthetic: Features, seed: int, points: int = 15) -> float:
    """Return FID for infinitely many synthetic images (Chong and Forsyth 2020)."""
    raise NotImplementedError
