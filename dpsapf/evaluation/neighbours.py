"""Precision, recall, density and coverage: whether features lie in balls around the other set's features."""

from dataclasses import dataclass

import numpy as np

from dpsapf.evaluation.gaussians import Features


@dataclass(frozen=True)
class Manifolds:
    """What one pass over all pairs gives.

    Attributes:
        precision: share of synthetic images in a real image's ball, [0, 1].
        recall: share of real images in a synthetic image's ball, [0, 1].
        density: real balls that a synthetic image lies in, over k, on average; at least 0, 1 where both sets are alike.
        coverage: share of real images whose ball holds a synthetic image, [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def nearest_distances(features: Features, count: int, device: str) -> np.ndarray:
    """Return the distances of every point to its nearest others, fp32 [N, count], ascending: radii for every k up to count."""
    raise NotImplementedError


def radii(features: Features, neighbours: int, device: str, itself: bool = False) -> np.ndarray:
    """Return the distance of every point to its k-th nearest, fp32 [N].

    Args:
        features: fp32 [N, D].
        neighbours: k, at least 1.
        device: where products are computed, "cpu" or "cuda".
        itself: whether a point counts as its own first neighbour; then k = 1 gives 0.

    Raises:
        UserError: there are not that many others.
    """
    raise NotImplementedError


def manifold_scores(
    real: Features,
    synthetic: Features,
    precision_radii: np.ndarray,
    recall_radii: np.ndarray,
    density_radii: np.ndarray,
    neighbours: int,
    device: str,
) -> Manifolds:
    """Return all four scores by one pass over the distances.

    Args:
        real: fp32 [N, D].
        synthetic: fp32 [M, D].
        precision_radii: of real images [N].
        recall_radii: of synthetic images [M].
        density_radii: of real images [N], for density and coverage.
        neighbours: k of ``density_radii``.
        device: "cpu" or "cuda".
    """
    raise NotImplementedError


def precision(real: Features, real_radii: np.ndarray, synthetic: Features, device: str) -> float:
    """Return the share of synthetic images in some real image's ball (Kynkaanniemi et al. 2019)."""
    raise NotImplementedError


def recall(real: Features, synthetic: Features, synthetic_radii: np.ndarray, device: str) -> float:
    """Return the share of real images in some synthetic image's ball (Kynkaanniemi et al. 2019)."""
    raise NotImplementedError


def density(real: Features, real_radii: np.ndarray, neighbours: int, synthetic: Features, device: str) -> float:
    """Return the number of real balls that a synthetic image lies in, over k, on average (Naeem et al. 2020)."""
    raise NotImplementedError


def coverage(real: Features, real_radii: np.ndarray, synthetic: Features, device: str) -> float:
    """Return the share of real images whose ball holds a synthetic image (Naeem et al. 2020)."""
    raise NotImplementedError
