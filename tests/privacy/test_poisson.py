import fractions
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


SMALL = [7.8e-7, 6.4e-7, 2.5e-5]  # a unit in 1.3 million, and 32: steps of 2^-24 are large beside them
RATES = [*SMALL, 1e-10, 2**-35, 350 / 3513, 4096 / 45_000, 0.1, 0.5, 0.75, 1 - 2**-53]
TINY = [2**-36 * (1 + 2**-52), 1e-20, 2**-87, 2**-88, 5e-324]
TWISTER = slice(24, 24 + 8 * 624)  # where `get_state` has the words of the Mersenne Twister


def speaking(words):
    """A generator that says these 32-bit words next, at most 623: its state is found by undoing the tempering."""
    state = (y := np.asarray(words, dtype=np.uint64)) ^ (y >> 18)
    state ^= (state << 15) & 0xEFC60000
    first = state
    for _ in range(4):  # seven bits more are right each time
        state = first ^ ((state << 7) & 0x9D2C5680)
    first = state
    for _ in range(2):  # eleven bits
        state = first ^ (state >> 11)
    generator = torch.Generator()
    image = generator.get_state()
    image.numpy()[8:16].view(np.int32)[:] = [624, 1]  # left before the next twist; seeded
    image.numpy()[16:24].view(np.uint64)[:] = 1  # the next word
    image.numpy()[TWISTER].view(np.uint64)[1 : 1 + len(state)] = state & 0xFFFFFFFF
    return generator.set_state(image)


def enters(rate, leading, rest=0):
    """Whether a unit enters whose word ends in these 24 bits, followed by a 63-bit number."""
    return len(poisson_batch(1, rate, speaking([leading, rest >> 32, rest & 0xFFFFFFFF]))) == 1


def first_outside(inside, count):
    """The least number below ``count`` that is not inside, or ``count``; all before it are inside."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if inside(middle) else (low, middle)
    return low


def exact_chance(rate):
    """The probability with which a unit enters, by the least words that keep it out."""
    leading = first_outside(lambda word: enters(rate, word, 2**63 - 1), 2**24)  # enters whatever follows
    rest = first_outside(lambda word: enters(rate, leading, word), 2**63) if leading < 2**24 else 0
    assert leading > 2**24 - 2 or not enters(rate, leading + 1)
    return fractions.Fraction(leading, 2**24) + fractions.Fraction(rest, 2**87)


def test_a_generator_says_the_words_that_it_is_told():
    words = np.random.default_rng(0).integers(0, 2**32, 600)
    assert torch.equal(torch.empty(600, dtype=torch.int32).random_(generator=speaking(words)).long(), torch.tensor(words % 2**31))


@pytest.mark.parametrize("rate", RATES)
def test_the_chance_is_the_rate_to_the_last_bit(rate):
    assert exact_chance(rate) == fractions.Fraction(rate)


@pytest.mark.parametrize("rate", TINY)
def test_the_chance_of_a_tiny_rate_is_never_above_it(rate):
    assert 0 <= fractions.Fraction(rate) - exact_chance(rate) < fractions.Fraction(1, 2**87)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_the_chance_of_any_rate_is_that_rate_rounded_down(rate):
    assert exact_chance(rate) == fractions.Fraction(math.floor(fractions.Fraction(rate) * 2**87), 2**87)


def test_each_unit_at_the_limit_is_decided_by_a_number_of_its_own():
    rate, words = 0.3, []
    limit, further = int(rate * 2**24), fractions.Fraction(rate) * 2**24 % 1 * 2**63
    for number in (0, math.floor(further), 0, 2**63 - 1, math.ceil(further) - 1):
        words += [number >> 32, number & 0xFFFFFFFF]
    batch = poisson_batch(6, rate, speaking([limit - 1, limit, limit + 1, limit, limit, limit - 1, *words]))
    assert batch.tolist() == [0, 3, 5], "their further numbers: 1 at the rate, 3 below, 4 far above; 2 has none"


def rare_words(seed, zeros, count):
    """Words whose first bits of 24 are 0, which happens once in 2^zeros; behind them, words for what else is drawn."""
    words = np.random.default_rng(seed).integers(0, 2**32, 623)
    words[:count] &= ~(((1 << zeros) - 1) << (24 - zeros))
    return words


@pytest.mark.parametrize(("rate", "rounds"), zip(SMALL, [100, 600, 25_000], strict=True))
def test_units_enter_at_small_rates_as_often_as_is_accounted(rate, rounds):
    """Only words that begin with zeros are drawn: others admit nobody, so what is seen is the rate times 2^zeros."""
    zeros, count = int(-math.log2(rate)) - 1, 600
    assert not any(enters(rate, 1 << bit) for bit in range(24 - zeros, 24))
    found = sum(len(poisson_batch(count, rate, speaking(rare_words(seed, zeros, count)))) for seed in range(rounds))
    chance, draws = rate * 2**zeros, rounds * count
    assert abs(found - draws * chance) < 3 * math.sqrt(draws * chance * (1 - chance))  # three standard errors of fixed draws


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 60), rate=st.floats(0.01, 0.99), seed=st.integers(0, 999))
def test_batches_of_a_seed_are_those_of_opacus_sampler(images, rate, seed):
    """But where a unit's number equals the rate in all of its 24 bits, which happens once in 2^24 units: none of these."""
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
