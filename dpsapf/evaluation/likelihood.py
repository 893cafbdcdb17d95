"""Feature likelihood divergence (FLD): the likelihood of unseen real images under a density around the synthetic ones."""

from dpsapf.evaluation.gaussians import Features


def feature_likelihood(
    train: Features, test: Features, synthetic: Features, device: str, seed: int, baseline: float | None = None
) -> float:
    """Return FLD (Jiralerspong et al. 2023); lower is better, 0 is as good as half of the training images.

    Args:
        train: features of real images that bandwidths are fitted to, fp32 [N, D].
        test: features of real images that nothing was trained on, fp32 [T, D].
        synthetic: fp32 [M, D].
        device: "cpu" or "cuda".
        seed: of the images that are drawn where there are many.
        baseline: what `baseline` returned for these real images, so that it is computed once; None: compute it.
    """
    raise NotImplementedError


def baseline(train: Features, test: Features, size: int, device: str, seed: int) -> float:
    """Return what FLD subtracts: the score of ``size`` training images in the place of synthetic ones."""
    raise NotImplementedError
