"""How close synthetic features are to real ones: FID, KID, precision and recall."""

import numpy as np
import torch
from cleanfid.fid import frechet_distance, kernel_distance


def frechet(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the Frechet distance of two feature sets [N, D] and [M, D] (Heusel et al. 2017), by clean-fid."""
    statistics = [(features.mean(0), np.cov(features, rowvar=False)) for features in (real, synthetic)]
    return float(frechet_distance(*statistics[0], *statistics[1]))


def kernel(real: np.ndarray, synthetic: np.ndarray, subsets: int, size: int, generator: np.random.Generator) -> float:
    """Return the kernel distance (Binkowski et al. 2018), averaged over subsets, by clean-fid.

    clean-fid draws its subsets from NumPy's global state. Here each subset comes from ``generator`` and clean-fid
    is given exactly that subset, so that its own draw is a mere permutation.

    Args:
        real: [N, D].
        synthetic: [M, D].
        subsets: number of subsets.
        size: images per subset, at most N and M.
        generator: of the subsets.
    """
    size = min(size, len(real), len(synthetic))
    values = []
    for _ in range(subsets):
        chosen = [features[generator.choice(len(features), size, replace=False)] for features in (real, synthetic)]
        values.append(kernel_distance(*chosen, num_subsets=1, max_subset_size=size))
    return float(np.mean(values))


def precision_recall(real: np.ndarray, synthetic: np.ndarray, neighbours: int) -> tuple[float, float]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019), both in [0, 1].

    Precision is the share of synthetic features inside some real feature's ball, whose radius is the distance to
    its k-th nearest neighbour among the real ones; recall the same with the roles exchanged.

    Args:
        real: [N, D], N > k.
        synthetic: [M, D], M > k.
        neighbours: k.
    """
    first, second = torch.from_numpy(real), torch.from_numpy(synthetic)
    between = _distances(first, second)
    return _covered(first, between, neighbours), _covered(second, between.T, neighbours)


def _covered(centres: torch.Tensor, distances: torch.Tensor, neighbours: int) -> float:
    """Return the share of columns that lie in the ball of some row's centre."""
    radii = _distances(centres, centres).kthvalue(neighbours + 1, dim=1).values
    return (distances <= radii[:, None]).any(0).double().mean().item()


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
