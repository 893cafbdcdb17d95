"""Two sets of features as two Gaussians: their moments, the Frechet distance (FID) and its limit for many images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpstrf

from dpsapf.experiment.registries import FEWEST_TO_EXTRAPOLATE
from dpsapf.support.arrays import Rows
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track
from dpsapf.support.randomness import numpy_generator

Features = np.ndarray | Rows
"""Features fp32 [N, D], in memory or in a file, read a chunk of rows at a time."""

CHUNK = 1024  # rows that are read and multiplied at once


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


def finite(values: np.ndarray) -> np.ndarray:
    """Return sums over features as they are.

    Raises:
        UserError: they are no numbers: some feature is none, and comparisons with it would pass for a score.
    """
    if not np.isfinite(values).all():
        raise UserError("features", "NaN or infinity", "the feature network failed on some image")
    return values


def moments(features: Features) -> Moments:
    """Return mean and covariance of features [N, D], in one pass over chunks of rows.

    Products are float64: with fp32 ones, N < D images would get a covariance of full rank, made of rounding, of which the
    distance's square root makes an error of 0.1 %.

    Raises:
        UserError: there are fewer than two, or a feature is no number.
    """
    sums = _Sums(features[:CHUNK])
    for start in range(CHUNK, len(features), CHUNK):
        sums.add(features[start : start + CHUNK])
    return sums.moments()


def frechet(one: Moments, other: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017).

    With any root R R^T = A, A B and the symmetric R^T B R have the same eigenvalues but zeros; the trace is the sum of
    their square roots. R comes from Cholesky's decomposition with pivots, which singular covariances have too, and of the one of
    lower rank: then R^T B R has few eigenvalues 0, whose rounding the root would enlarge. Off by about 1e-6 of the trace of A + B
    at most, for instance below 0 by that.

    Args:
        one: of D features.
        other: of as many.
    """
    roots = [(root(given.covariance), rest) for given, rest in ((one, other), (other, one))]
    factor, rest = min(roots, key=lambda pair: pair[0].shape[1])
    return between(one, other, factor.T @ rest.covariance @ factor)


def between(one: Moments, other: Moments, product: np.ndarray) -> float:
    """Return the distance of `frechet` from a symmetric matrix that has the eigenvalues of the covariances' product."""
    difference = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(difference @ difference + traces - 2 * trace_of_root(product))


def root(covariance: np.ndarray) -> np.ndarray:
    """Return R [D, rank] with R R^T = A, for a positive semidefinite A [D, D]."""
    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    found = np.empty((len(covariance), rank))
    found[pivots - 1] = np.tril(lower)[:, :rank]
    return found


def trace_of_root(product: np.ndarray) -> float:
    """Return the sum of the square roots of a symmetric matrix' eigenvalues; what rounding made negative is 0."""
    return np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum() if len(product) else 0.0


def frechet_infinity(real: Moments, synthetic: Features, seed: int, points: int = 15) -> float:
    """Return FID as it would be for infinitely many synthetic images (Chong and Forsyth 2020); it can be negative.

    FID of n images is nearly linear in 1 / n. It is computed for numbers of images from a tenth of them to all, in equal
    steps, as published for 50,000; the intercept of the least-squares line is the result. Each number takes the first of one
    random order, so that moments are summed once. What few real images add is not removed.

    Args:
        real: of the real images.
        synthetic: fp32 [M, D].
        seed: of the order.
        points: how many numbers of images, at least 2.

    Raises:
        UserError: there are fewer than 20 images.
    """
    count = len(synthetic)
    if count < FEWEST_TO_EXTRAPOLATE:
        raise UserError("synthetic images", count, f"FID without bias needs {FEWEST_TO_EXTRAPOLATE} or more")
    counts = np.linspace(count // 10, count, points).astype(int)
    order = numpy_generator(seed, "frechet-infinity").permutation(count)
    factor = root(real.covariance)
    found = [between(real, part, factor.T @ part.covariance @ factor) for part in _growing(synthetic, order, counts)]
    return float(np.polyfit(1 / counts, found, 1)[1])


def _growing(features: Features, order: np.ndarray, counts: np.ndarray) -> Iterator[Moments]:
    """Give the moments of the first rows of an order, for ascending numbers of rows."""
    sums, start = None, 0
    for count in track(counts, "FID by number of images", "point"):
        for first in range(start, count, CHUNK):
            rows = features[order[first : min(first + CHUNK, count)]]
            if sums is None:
                sums = _Sums(rows)
            else:
                sums.add(rows)
        start = count
        yield sums.moments()


class _Sums:
    """Sums of rows and of their products, in float64.

    The first rows' mean is taken from all: covariances do not change by it, and rounding is relative to how features spread,
    not to how far they are from 0.
    """

    def __init__(self, first: np.ndarray) -> None:
        dimensions = first.shape[1]
        self._shift = first.mean(0, dtype=np.float64) if len(first) else np.zeros(dimensions)
        self._count, self._sum, self._products = 0, np.zeros(dimensions), np.zeros((dimensions, dimensions))
        self.add(first)

    def add(self, rows: np.ndarray) -> None:
        moved = rows - self._shift
        self._count += len(rows)
        self._sum += moved.sum(0)
        self._products += moved.T @ moved

    def moments(self) -> Moments:
        if self._count < 2:
            raise UserError("images", self._count, "a covariance needs two or more")
        mean = finite(self._sum) / self._count
        covariance = (self._products - self._count * np.outer(mean, mean)) / (self._count - 1)
        return Moments(self._count, self._shift + mean, covariance)
