"""How close synthetic features are to real ones: FID, KID, precision and recall."""

import warnings

import numpy as np
import torch
from cleanfid.fid import frechet_distance, kernel_distance
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


def kernel(real: np.ndarray, synthetic: np.ndarray, subsets: int, size: int, seed: int) -> float:
    """Return the kernel distance (Binkowski et al. 2018) by clean-fid: the unbiased estimate, averaged over subsets.

    It can be negative. clean-fid draws its subsets from NumPy's global state, so that is seeded here for the call
    and given back as it was.

    Args:
        real: [N, D].
        synthetic: [M, D].
        subsets: number of subsets.
        size: images per subset, at most N and M are taken.
        seed: of the subsets, 32 bits.
    """
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        return kernel_distance(real, synthetic, num_subsets=subsets, max_subset_size=size)
    finally:
        np.random.set_state(state)  # noqa: NPY002


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
