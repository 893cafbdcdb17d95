"""Poisson sampling: every image enters a batch independently, as the accounting assumes."""

import torch


def poisson_batch(images: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one Poisson batch with Opacus' sampler.

    Args:
        images: N.
        rate: probability in (0, 1] with which each image enters.
        generator: CPU generator of this batch alone.

    Returns:
        Ascending indices int64 [B], B ~ Binomial(N, rate): B varies and may be 0.
    """
    if rate == 1:
        return torch.arange(images)
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    sampler = UniformWithReplacementSampler(num_samples=images, sample_rate=rate, generator=generator, steps=1)
    return torch.tensor(next(iter(sampler)), dtype=torch.int64)
