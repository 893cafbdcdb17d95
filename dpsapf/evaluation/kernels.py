"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features."""

from dpsapf.evaluation.gaussians import Features


def kernel_distance(real: Features, synthetic: Features, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Return the kernel distance, averaged over subsets, and its standard deviation over them; the first can be negative.

    Args:
        real: fp32 [N, D].
        synthetic: fp32 [M, D].
        subsets: number of subsets, at least 1.
        size: images of each kind in a subset, drawn without replacement, 2 to min(N, M).
        seed: of the subsets.

    Raises:
        UserError: there are fewer images than ``size``.
    """
    raise NotImplementedError
