"""How close synthetic features are to real ones: FID, KID, precision and recall."""

import warnings

import numpy as np
import torch
from cleanfid.fid import frechet_distance
from scipy.linalg import LinAlgWarning

CHUNK = 512  # rows of a distance matrix that are held at once


def frechet(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the Frechet distance of two feature sets [N, D] and [M, D] (Heusel et al. 2017), by clean-fid.

    A feature that is constant makes a covariance singular, of which SciPy warns. The product of two covariances has
    a square root all the same, and its trace is right to about 1e-5, so the warning is dropped.
    """
    statistics = [(features.mean(0), np.cov(features, rowvar=False)) for features in (real, synthetic)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Matrix is singular", LinAlgWarning)
        return float(frechet_distance(*statistics[0], *statistics[1]))


def kernel(real: np.ndarray, synthetic: np.ndarray, subsets: int, size: int, generator: np.random.Generator) -> float:
    """Return the kernel distance (Binkowski et al. 2018): the unbiased estimate, averaged over subsets.

    It can be negative. clean-fid's `kernel_distance` is the same estimate, but takes its subsets from NumPy's
    global state: no seed that is passed along could reproduce it.

    Args:
        real: [N, D].
        synthetic: [M, D].
        subsets: number of subsets.
        size: images per subset, at most N and M are taken.
        generator: of the subsets.
    """
    size = min(size, len(real), len(synthetic))
    draws = ([generator.choice(features, size, replace=False) for features in (real, synthetic)] for _ in range(subsets))
    return float(np.mean([_squared_discrepancy(*pair) for pair in draws]))


def _squared_discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets [m, D] of equal size."""
    within = _polynomial(first, first) + _polynomial(second, second)
    np.fill_diagonal(within, 0)
    size = len(first)
    return within.sum() / (size * (size - 1)) - 2 * _polynomial(first, second).mean()


def _polynomial(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def precision_recall(real: np.ndarray, synthetic: np.ndarray, neighbours: int, device: str = "cpu") -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019), both in [0, 1].

    Precision is the share of synthetic features inside some real feature's ball, whose radius is the distance to
    its k-th nearest neighbour among the real ones; recall the same with the roles exchanged.

    Args:
        real: [N, D], N > k.
        synthetic: [M, D], M > k.
        neighbours: k.
        device: where distances are computed.
    """
    first, second = torch.from_numpy(real).to(device), torch.from_numpy(synthetic).to(device)
    return _covered(first, second, neighbours), _covered(second, first, neighbours)


def _covered(centres: torch.Tensor, points: torch.Tensor, neighbours: int) -> float:
    """Return the share of points that lie in some centre's ball, a chunk of centres at a time."""
    covered = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for chunk in centres.split(CHUNK):
        radii = torch.cdist(chunk, centres).kthvalue(neighbours + 1, dim=1).values  # the nearest is the centre itself
        covered |= (torch.cdist(chunk, points) <= radii[:, None]).any(0)
    return covered.double().mean().item()
