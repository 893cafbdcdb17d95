"""Poisson sampling: every unit, an image or a user, enters a batch independently, as the accounting assumes."""

import torch

LEADING = 24  # bits that decide about nearly every unit; as many, of the same words, as in Opacus' sampler
REST = 63  # further bits, of torch's int64 words, for a unit whose leading bits equal the rate's


def poisson_batch(population: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one Poisson batch at the accounted rate.

    A unit enters if a uniform number of 87 random bits, read as a binary fraction, is below the rate. So it enters with
    probability floor(2^87 rate) / 2^87. That is exactly the rate from 2^-35 = 2.9e-11 on, as a float64 has 53 significant
    bits. Below, it is less than the rate by under 2^-87, and never more.

    Args:
        population: N.
        rate: probability in (0, 1] with which each unit enters.
        generator: CPU generator of this batch alone.

    Returns:
        Ascending indices int64 [B], B ~ Binomial(N, rate): B varies and may be 0.
    """
    if rate == 1:
        return torch.arange(population)
    scaled = rate * 2**LEADING  # times a power of two: nothing is rounded
    limit = int(scaled)
    leading = torch.empty(population, dtype=torch.int32).random_(generator=generator).bitwise_and_(2**LEADING - 1)
    near = (leading <= limit).nonzero().flatten()
    enters = leading[near] < limit
    if not enters.all():
        rest = torch.empty(len(near), dtype=torch.int64).random_(generator=generator)
        enters |= rest < int((scaled - limit) * 2**REST)
    return near[enters]
