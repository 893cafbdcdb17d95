"""Poisson sampling: every unit, an image or a user, enters a batch independently, as the accounting assumes."""

import torch


def poisson_batch(population: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one Poisson batch with Opacus' sampler.

    Args:
        population: N.
        rate: probability in (0, 1] with which each unit enters.
        generator: CPU generator of this batch alone.

    Returns:
        Ascending indices int64 [B], B ~ Binomial(N, rate): B varies and may be 0.
    """
    if rate == 1:
        return torch.arange(population)
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    sampler = UniformWithReplacementSampler(num_samples=population, sample_rate=rate, generator=generator, steps=1)
    return torch.tensor(next(iter(sampler)), dtype=torch.int64)
