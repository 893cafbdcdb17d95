import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from scipy import stats

from dpsapf.privacy.noise import Draws
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.support.randomness import torch_generator


def fixed_size(images, rate, generator):
    """What a shuffled loader does: the accounting would not hold for it."""
    return torch.randperm(images, generator=generator)[: round(rate * images)].sort().values


def in_blocks(images, rate, generator):
    """Neighbouring images enter together, each with the right chance."""
    return (2 * poisson_batch(images // 2, rate, generator)[:, None] + torch.arange(2)).flatten()


def too_often(images, rate, generator):
    return poisson_batch(images, 1.3 * rate, generator)


def size_chance(sampler, images=40, rate=0.15, steps=1500):
    """P-value of the sizes under Binomial(images, rate), by a chi-square test over cells of at least five."""
    sizes = [len(sampler(images, rate, torch_generator(3, "size", step))) for step in range(steps)]
    low, high = (int(stats.binom(images, rate).ppf(tail)) for tail in (0.02, 0.98))
    cells = np.concatenate([[-1], np.arange(low, high), [images]])
    expected = steps * np.diff(stats.binom(images, rate).cdf(cells))
    return stats.chisquare(np.histogram(sizes, cells + 0.5)[0], expected).pvalue


def joint_chance(sampler, rate=0.5, steps=2000):
    """P-value of who is in, for each of the 16 sets of four images, if each entered by itself."""
    counts = np.zeros(16)
    for step in range(steps):
        counts[int((2 ** sampler(4, rate, torch_generator(5, "joint", step))).sum())] += 1
    members = np.array([bin(subset).count("1") for subset in range(16)])
    return stats.chisquare(counts, steps * rate**members * (1 - rate) ** (4 - members)).pvalue


def test_sizes_are_binomial():
    assert size_chance(poisson_batch) > 0.01


@pytest.mark.parametrize("sampler", [fixed_size, in_blocks, too_often])
def test_broken_samplers_fail_the_statistic_of_sizes(sampler):
    assert size_chance(sampler) < 1e-6


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_images_enter_independently(rate):
    assert joint_chance(poisson_batch, rate) > 0.01


@pytest.mark.parametrize("sampler", [fixed_size, in_blocks, too_often])
def test_broken_samplers_fail_the_statistic_of_independence(sampler):
    assert joint_chance(sampler) < 1e-6


def test_every_image_has_its_chance():
    sizes, counts = [], np.zeros(200)
    for step in range(400):
        batch = poisson_batch(200, 0.05, torch_generator(3, step)).numpy()
        sizes.append(len(batch))
        counts[batch] += 1
    assert np.mean(sizes) == pytest.approx(10, abs=4 * math.sqrt(9.5 / 400))  # four standard errors
    assert np.var(sizes) == pytest.approx(9.5, rel=0.3)  # four standard errors of a variance of 400 draws; a fixed size has 0
    assert stats.kstest(counts, stats.binom(400, 0.05).cdf).statistic < 0.15  # discrete cdf: a bound, not a p-value


def test_steps_are_independent():
    """Sampling without replacement over an epoch would make an image rarer in the step after its own."""
    inside = np.zeros((600, 20))
    for step in range(600):
        inside[step, poisson_batch(20, 0.5, torch_generator(1, step)).numpy()] = 1
    both = (inside[1:] * inside[:-1]).mean()
    assert both == pytest.approx(0.25, abs=4 * math.sqrt(5 / 16 / (599 * 20)))  # four standard errors; products overlap


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 60), rate=st.floats(0.01, 1), seed=st.integers(0, 999))
def test_a_batch_is_ascending_distinct_and_in_range(images, rate, seed):
    batch = poisson_batch(images, rate, torch_generator(seed))
    assert batch.dtype == torch.int64 and batch.dim() == 1
    assert batch.tolist() == sorted(set(batch.tolist()) & set(range(images)))


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 60), rate=st.floats(0.01, 0.99), seed=st.integers(0, 999))
def test_it_is_opacus_sampler(images, rate, seed):
    sampler = UniformWithReplacementSampler(num_samples=images, sample_rate=rate, generator=torch_generator(seed), steps=1)
    assert poisson_batch(images, rate, torch_generator(seed)).tolist() == next(iter(sampler))


def test_a_batch_may_be_empty():
    empty = [batch for step in range(20) if not len(batch := poisson_batch(5, 0.05, torch_generator(0, step)))]
    assert empty and all(batch.shape == (0,) and batch.dtype == torch.int64 for batch in empty)


def test_rate_one_is_everyone_without_a_draw():
    generator = torch_generator(0)
    before = generator.get_state()
    assert poisson_batch(5, 1.0, generator).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(generator.get_state(), before)


def test_system_mode_draws_other_batches_every_time():
    batches = {tuple(poisson_batch(50, 0.5, Draws("system", 0, "test").secret("x")).tolist()) for _ in range(3)}
    again = [poisson_batch(50, 0.5, Draws("seed", 0, "test").secret("x")) for _ in range(2)]
    assert len(batches) == 3 and torch.equal(*again)
