import copy
import math
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsapf.privacy import noise as noise_module
from dpsapf.privacy.noise import (
    Draws,
    SeededNoise,
    SystemNoise,
    add_gaussian_noise,
    grid,
    gumbel_noise,
    laplace_noise,
    mode_of,
    rounded_down,
)
from dpsapf.support.randomness import torch_generator

BLOCK = 2**16  # numbers that are drawn at a time
FOR_TWO = 2**19  # numbers that are worth two threads
BY_CHANCE = 1e-8  # system noise differs in every run: how often a test of it may fail


GRID = 2.0**-30  # fine enough to see nothing of it


def noisy(value, sigma, bound, source, spacing=GRID):
    return add_gaussian_noise(value, sigma, bound, spacing, source)


def gumbels(count, scale, source):
    return np.array([float(draw) for draw in gumbel_noise(count, Decimal(scale), source)])


def laplaces(count, scale, source):
    return np.array([float(laplace_noise(Decimal(scale), source)) for _ in range(count)])


def source_of(mode, name="x"):
    return Draws(mode, 0, "test").noise(name)


class Given:
    """A source whose draws are what a test gives."""

    def __init__(self, *draws):
        self.draws = [Decimal(draw) for draw in draws]

    def uniform(self, count):
        assert count == len(self.draws)
        return self.draws


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(name="x"):
    return SeededNoise(torch_generator(0, name))


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "ks")), SystemNoise()])
def test_noise_has_the_stated_scale(source):
    """A KS test that accepts sigma C and rejects 2/3 and 3/2 of it."""
    noise = noisy(torch.zeros(4000), 3.0, 0.5, source).numpy()
    assert stats.kstest(noise, stats.norm(0, 1.5).cdf).pvalue > BY_CHANCE
    for wrong in (1.0, 2.25):
        assert stats.kstest(noise, stats.norm(0, wrong).cdf).pvalue < 1e-6


def test_noise_differs_between_generators_and_repeats_with_one():
    first, second, third = (noisy(torch.zeros(9), 1.0, 1.0, seeded(name)) for name in "aab")
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_seeded_uniforms_differ_between_generators_and_repeat_with_one():
    first, second, third = (seeded(name).uniform(9) for name in "aab")
    assert first == second and len({*first, *third}) == 18


@pytest.mark.parametrize("source", [seeded(), SystemNoise()])
@pytest.mark.parametrize("count", [0, 3])
def test_draws_are_in_double_precision_where_it_is_asked_for(source, count):
    assert source.normal(torch.zeros(count, dtype=torch.float64)).dtype == torch.float64
    assert len(source.uniform(count)) == count


def test_a_source_never_repeats_its_draws():
    """A release over several tensors takes one draw of each: equal draws would cancel in a difference."""
    for source in (seeded(), SystemNoise()):
        draws = [source.normal(torch.zeros(2000)).numpy() for _ in range(2)]
        assert abs(np.corrcoef(*draws)[0, 1]) < 6 / math.sqrt(2000)  # six standard errors
        assert abs(np.corrcoef(draws[0][1:], draws[0][:-1])[0, 1]) < 6 / math.sqrt(2000)  # nor within a draw


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.1, 50), sensitivity=st.floats(0.01, 10), value=st.floats(-100, 100))
def test_noise_is_scaled_by_the_product_and_does_not_look_at_the_value(sigma, sensitivity, value):
    sums = torch.full((4,), value, dtype=torch.float64)
    noise = noisy(sums, sigma, sensitivity, seeded()) - value
    unit = noisy(torch.zeros(4, dtype=torch.float64), 1.0, 1.0, seeded(), 2.0**-50)
    torch.testing.assert_close(noise, sigma * sensitivity * unit, rtol=1e-9, atol=GRID)
    assert (sums == value).all()  # the exact sum is left as it was


class Fixed:
    """A source of known draws."""

    kind = "seed"

    def normal(self, like):
        return torch.linspace(-3, 3, len(like), dtype=torch.float64)


def longhand(value, sigma, bound, spacing, draws):
    """The oracle, in fractions: sum and noise, each rounded to whole steps of the grid (halves to even), then added."""
    step = Fraction(spacing)
    return [
        float((round(Fraction(x) / step) + round(Fraction(sigma * bound / spacing * z))) * step)
        for x, z in zip(value.tolist(), draws.tolist(), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.integers(-40, 3),
    sigma=st.floats(0.01, 300),
    bound=st.floats(1e-3, 1e3),
    double=st.booleans(),
)
def test_sum_and_noise_are_rounded_to_the_grid_once_and_added_without_rounding(exponent, sigma, bound, double):
    value = torch.linspace(-0.1, 7.7, 101, dtype=torch.float64 if double else torch.float32)
    spacing = 2.0**exponent
    found = add_gaussian_noise(value, sigma, bound, spacing, Fixed())
    assert found.tolist() == longhand(value, sigma, bound, spacing, Fixed().normal(value))


@settings(max_examples=40, deadline=None)
@given(
    bound=st.floats(1e-6, 1e6),
    numbers=st.sampled_from([1, 1000, 2**32]),
    units=st.sampled_from([1, 2**22 - 1]),
    sigma=st.floats(0.1, 2000),
)
def test_steps_are_exact_up_to_the_largest_sums(bound, numbers, units, sigma):
    """Of millions of units that all add the bound to one number, and of noise for as many numbers as a model has."""
    value, spacing = torch.linspace(-1, 1, 31, dtype=torch.float64) * units * bound, grid(bound, numbers)
    found = add_gaussian_noise(value, sigma, bound, spacing, Fixed())
    assert found.tolist() == longhand(value, sigma, bound, spacing, Fixed().normal(value))


@given(sensitivity=st.floats(1e-6, 1e6), numbers=st.integers(1, 2**32))
def test_the_grid_raises_the_sensitivity_by_a_16384th_at_most(sensitivity, numbers):
    spacing = grid(sensitivity, numbers)
    assert math.frexp(spacing)[0] == 0.5  # a power of two
    assert Fraction(spacing) ** 2 * numbers <= (Fraction(sensitivity) / 2**14) ** 2 * (1 + Fraction(1, 2**40))  # sqrt in fp64
    assert spacing * 2 * math.sqrt(numbers) > sensitivity / 2**14 * (1 - 1e-12)  # the largest such


@given(values=st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=9), exponent=st.integers(-20, 0))
def test_rounding_down_raises_nothing_and_gives_multiples_of_the_grid(values, exponent):
    spacing = 2.0**exponent
    found = rounded_down(torch.tensor(values), spacing).tolist()
    assert found == [float(Fraction(value) // Fraction(spacing) * Fraction(spacing)) for value in values]


@pytest.mark.parametrize("source", [seeded(), SystemNoise()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 1, 4), (0, 3)])
def test_noise_takes_the_shape_of_what_it_is_added_to_and_is_in_double_precision(source, dtype, shape):
    found = noisy(torch.zeros(shape, dtype=dtype), 1.0, 1.0, source)
    assert found.shape == shape and found.dtype == torch.float64
    assert found.numel() <= 1 + len(set(found.flatten().tolist()))  # a draw for each entry; two of 32 bits may be equal


def test_system_noise_has_no_seed():
    source = source_of("system")
    assert not torch.equal(source.normal(torch.zeros(9)), source_of("system").normal(torch.zeros(9)))
    draws = source.uniform(10_000)
    assert min(draws) > 0 and max(draws) < 1 and stats.kstest(np.array(draws, dtype=float), "uniform").pvalue > BY_CHANCE
    assert source.normal(torch.zeros(2, 3, dtype=torch.float64)).shape == (2, 3)


def test_no_two_of_many_sources_draw_alike():
    """Of 2,000 sources some two would, with a chance of 1 - 6e-14 if keys had 16 bits, and of 0.85 if they had 20."""
    one = torch.zeros(1, dtype=torch.float64)
    assert len({SystemNoise().normal(one).item() for _ in range(2000)}) == 2000


def test_seeded_noise_follows_the_seed_the_stage_and_the_name():
    names = ("0ab", "0ab", "1ab", "0bb", "0aa")
    draws = [Draws("seed", int(seed), stage).noise(name).normal(torch.zeros(9)) for seed, stage, name in names]
    assert torch.equal(draws[0], draws[1]) and len({tuple(draw.tolist()) for draw in draws}) == 4


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "others")), SystemNoise()])
def test_gumbel_and_laplace_have_the_stated_scale(source):
    gumbel, laplace = gumbels(4000, 2.0, source), laplaces(8000, 2.0, source)
    assert stats.kstest(gumbel, stats.gumbel_r(0, 2).cdf).pvalue > BY_CHANCE
    assert stats.kstest(laplace, stats.laplace(0, 2).cdf).pvalue > BY_CHANCE
    for wrong in (2 * 2 / 3, 2 * 3 / 2):
        assert stats.kstest(gumbel, stats.gumbel_r(0, wrong).cdf).pvalue < 1e-6
        assert stats.kstest(laplace, stats.laplace(0, wrong).cdf).pvalue < 1e-6


@settings(max_examples=50, deadline=None)
@given(draw=st.floats(1e-12, 1 - 1e-12), scale=st.floats(0.01, 100))
def test_gumbel_and_laplace_are_scipys_quantiles(draw, scale):
    """Inversion: the uniform draw is the probability of less noise."""
    tolerance = {"rel": 1e-6, "abs": 1e-6 * scale}
    assert laplaces(1, scale, Given(draw)) == pytest.approx(stats.laplace.ppf(draw) * scale, **tolerance)
    assert gumbels(1, scale, Given(draw)) == pytest.approx(stats.gumbel_r.ppf(draw) * scale, **tolerance)


def test_every_entry_gets_its_own_gumbel_noise():
    draws = gumbels(3, 1.0, Given(0.2, 0.2, 0.9))
    assert draws[0] == draws[1] < draws[2]


def test_noise_that_decides_a_ranking_has_its_digits_at_both_ends():
    """Of uniforms next to 0 and to 1, where numbers of 53 bits run out."""
    with localcontext(prec=200):
        tiny = Decimal(2) ** -128
        low, high = gumbel_noise(2, Decimal(1), Given(tiny, 1 - tiny))
        assert abs(low + (128 * Decimal(2).ln()).ln()) < Decimal("1e-48")  # -ln(-ln u)
        assert abs(high - 128 * Decimal(2).ln()) < Decimal("1e-11")  # -ln(u) is 2^-128 to 11 digits of the 50
        (left, right) = (laplace_noise(Decimal(1), Given(uniform)) for uniform in (tiny, 1 - tiny))
        assert left == -right and abs(left + 127 * Decimal(2).ln()) < Decimal("1e-47")


class Written(SystemNoise):
    """System noise whose key stream is what a test gives, int64."""

    def __init__(self, words):
        self.words = torch.as_tensor(words)

    def _fill(self, words):
        given, self.words = self.words.split([words.numel(), len(self.words) - words.numel()])
        words.copy_(given.view(words.shape))


def four_normals(words):
    """The longhand oracle: four independent normals [4, n] from random integers [4, n]; y3 and y4 have any angle."""
    first, second, share = words[:3] / 2.0**64 + (0.5 + 2.0**-53)
    squared = -2 * (np.log(first) + np.log(second))
    radius, other = np.sqrt(squared * share), np.sqrt(squared * np.maximum(1 - share, 0))
    angle, any_angle = math.pi * words[3] / 2.0**63, np.random.default_rng(1).uniform(0, 2 * math.pi, words.shape[1])
    y = [radius * np.cos(angle), radius * np.sin(angle), other * np.cos(any_angle), other * np.sin(any_angle)]
    return np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2 @ np.array(y)


def integers(count, seed=0):
    return np.random.default_rng(seed).integers(-(2**63), 2**63, count)


def test_a_system_normal_is_half_the_sum_of_four_independent_ones():
    words = integers(4 * 50_000)
    four = four_normals(words.reshape(4, -1))
    drawn = Written(words).normal(torch.zeros(50_000, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(drawn, four.sum(0) / 2, rtol=0, atol=1e-12)
    for normal in four:
        assert stats.kstest(normal, "norm").pvalue > 1e-3  # the same words in every run
    for moments in (four, four**2):
        assert np.abs(np.corrcoef(moments) - np.eye(4)).max() < 5 / math.sqrt(50_000)


def test_every_block_takes_the_next_words(one_thread):
    count = 2 * BLOCK + 3  # in three blocks, the last one number shorter
    width = math.ceil(count / 3)
    words = integers(3 * 4 * width)
    drawn = Written(words).normal(torch.zeros(count, dtype=torch.float64)).numpy()
    expected = np.concatenate([four_normals(part.reshape(4, -1)).sum(0) / 2 for part in np.split(words, 3)])
    np.testing.assert_allclose(drawn, expected[:count], rtol=0, atol=1e-12)
    single = Written(words).normal(torch.zeros(count)).numpy()
    assert (single == drawn).all()  # in fp64, whatever gets it


def test_the_extreme_words_give_the_extreme_normals():
    """Finite whatever the bits: an infinite normal would release the sum without noise worth the name."""
    low, high = -(2**63), 2**63 - 1
    words = np.array(np.meshgrid(*[[low, -1, 0, 1, high]] * 4)).reshape(4, -1)
    drawn = Written(words.ravel()).normal(torch.zeros(words.shape[1], dtype=torch.float64))
    assert torch.isfinite(drawn).all()
    np.testing.assert_allclose(drawn, four_normals(words).sum(0) / 2, rtol=0, atol=1e-12)
    assert drawn.abs().max().item() == pytest.approx(math.sqrt(4 * 53 * math.log(2)))  # beyond 12
    assert SystemNoise().uniform(0) == []
    least, most = Written([0, 0, -1, -1]).uniform(2)
    with localcontext(prec=200):
        assert least == Decimal(2) ** -129 and most == 1 - Decimal(2) ** -129  # 0 and 1 are not reached


@pytest.mark.parametrize("threads", [1, 3])
def test_a_million_system_normals_are_normal(threads, one_thread):
    torch.set_num_threads(threads)
    drawn = SystemNoise().normal(torch.zeros(1_000_003)).numpy()
    assert torch.get_num_threads() == threads
    errors = 6 / math.sqrt(len(drawn))
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # E z^p, Var z^p
        assert abs(np.mean(drawn**power) - moment) < errors * math.sqrt(spread)
    assert stats.kstest(drawn, "norm").pvalue > BY_CHANCE
    for sigmas in (2, 3, 4, 5):
        for side in (drawn, -drawn):
            assert stats.binomtest(int((side > sigmas).sum()), len(drawn), stats.norm.sf(sigmas)).pvalue > BY_CHANCE


def unrelated(first, second):
    """Neither values nor sizes go together, within six standard errors."""
    return all(abs(np.corrcoef(f(first), f(second))[0, 1]) < 6 / math.sqrt(len(first)) for f in (np.asarray, np.abs, np.square))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_two_parts_of_system_noise_go_together(threads, one_thread):
    """Halves (with two threads, one's and the other's), neighbours, blocks, draws in a row, sources."""
    torch.set_num_threads(threads)
    like, source = torch.zeros(FOR_TWO), SystemNoise()
    first, second, other = (each.normal(like).numpy() for each in (source, source, SystemNoise()))
    assert unrelated(*np.split(first, 2)) and unrelated(first[1:], first[:-1])
    assert unrelated(first[BLOCK:], first[:-BLOCK])
    assert unrelated(first, second) and unrelated(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("like", [torch.zeros(6, 5).T, torch.zeros(7, 9)[::2, 1::3], torch.zeros(3, 1).expand(3, 5)])
def test_system_noise_for_what_is_not_contiguous(like, dtype):
    drawn = SystemNoise().normal(like.to(dtype))
    assert drawn.shape == like.shape and drawn.dtype == torch.float64 and len(drawn.unique()) > drawn.numel() / 2


@pytest.mark.parametrize("threads", [1, 2])
def test_system_noise_in_inference_mode_and_outside(threads, one_thread):
    torch.set_num_threads(threads)
    with torch.inference_mode():
        inside = SystemNoise().normal(torch.zeros(FOR_TWO))
    outside = SystemNoise().normal(torch.zeros(FOR_TWO, requires_grad=True))
    assert abs(inside.std() - 1) < 0.01 and not outside.is_inference() and not outside.requires_grad


KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")


def test_the_stream_is_aes_256_in_counter_mode(monkeypatch):
    """The first block is NIST's (SP 800-38A, F.5.5); the rest the library's own encryption of zeros, in order."""
    monkeypatch.setattr(noise_module.os, "urandom", {32: KEY, 16: COUNTER}.__getitem__)
    count = 2**20 // 8 + 50  # longer than what is encrypted at a time
    stream = Cipher(algorithms.AES256(KEY), modes.CTR(COUNTER)).encryptor().update(bytes(8 * (count + 40)))
    assert stream[:16].hex() == "0bdf7df1591716335e9a8b15c860c502"
    source, words = SystemNoise(), np.frombuffer(stream, dtype=np.uint64)
    low, high = words[:count].reshape(-1, 2).T.tolist()
    with localcontext(prec=200):
        expected = [(Decimal(a + (b << 64)) + Decimal("0.5")) / 2**128 for a, b in zip(low, high, strict=True)]
    assert source.uniform(count // 2) == expected
    expected = four_normals(words[count:].view(np.int64).reshape(4, 10)).sum(0) / 2
    np.testing.assert_allclose(source.normal(torch.zeros(10, dtype=torch.float64)), expected, rtol=0, atol=1e-12)


def test_each_source_process_and_thread_has_its_own_key(monkeypatch, one_thread):
    keys, urandom = [], noise_module.os.urandom
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: keys.append(urandom(count)) or keys[-1])
    source = SystemNoise()
    draws = [source.uniform(9), source.uniform(9)]
    assert [len(key) for key in keys] == [32, 16]  # once for each source
    monkeypatch.setattr(noise_module.os, "getpid", lambda: -2)  # as after a fork
    draws += [source.uniform(9), SystemNoise().uniform(9)]
    assert len(keys) == 6 and len({tuple(draw) for draw in draws}) == 4
    torch.set_num_threads(2)
    source.normal(torch.zeros(FOR_TWO))
    assert len(keys) == len(set(keys)) == 10


def test_the_first_process_of_a_machine_draws_too(monkeypatch):
    monkeypatch.setattr(noise_module.os, "getpid", lambda: 1)
    assert len(set(SystemNoise().uniform(9))) == 9


def test_few_numbers_or_a_single_thread_start_no_other_source(monkeypatch, one_thread):
    keys, urandom = [], noise_module.os.urandom
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: keys.append(urandom(count)) or keys[-1])
    source = SystemNoise()
    source.normal(torch.zeros(FOR_TWO))
    torch.set_num_threads(2)
    source.normal(torch.zeros(10))
    assert len(keys) == 2


def test_threads_that_start_later_are_given_as_many_threads_as_before(one_thread):
    torch.set_num_threads(2)
    SystemNoise().normal(torch.zeros(FOR_TWO))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_a_thread_that_fails_is_not_passed_over(monkeypatch, one_thread):
    """What it should have drawn would be whatever the memory held before."""
    torch.set_num_threads(2)
    monkeypatch.setattr(noise_module.os, "urandom", lambda count: b"too short")
    with pytest.raises(ValueError, match="size"):
        SystemNoise().normal(torch.zeros(FOR_TWO))


def test_a_used_source_cannot_be_copied():
    """A copy would go on with the same numbers."""
    source = SystemNoise()
    source.uniform(1)
    with pytest.raises(TypeError):
        copy.deepcopy(source)


@pytest.mark.parametrize("mode", ["seed", "system"])
def test_a_source_says_what_it_is(mode):
    assert source_of(mode).kind == mode


@pytest.mark.parametrize("mode", ["seed", "system"])
def test_a_generator_tells_its_mode_also_after_its_state_was_copied(mode):
    generator = Draws(mode, 0, "test").secret("batch")
    assert mode_of(generator) == mode
    assert mode_of(torch.Generator().set_state(generator.get_state())) == mode


def test_seeded_uniforms_are_never_0(monkeypatch):
    """torch draws from [0, 1); the logarithm of 0 would be infinite noise."""
    monkeypatch.setattr(torch, "rand", lambda count, **keywords: torch.zeros(count, dtype=torch.float64))
    assert all(uniform > 0 for uniform in seeded().uniform(3))
    assert np.isfinite(gumbels(3, 1.0, seeded())).all() and np.isfinite(laplaces(1, 1.0, seeded())).all()


def test_secret_draws_follow_the_seed_and_the_name_or_nothing_at_all():
    def drawn(mode, seed, *names):
        return tuple(torch.rand(4, generator=Draws(mode, seed, "test").secret(*names)).tolist())

    assert drawn("seed", 0, "batch", 3) == drawn("seed", 0, "batch", 3)
    assert len({drawn("seed", seed, name) for seed in (0, 1) for name in "ab"}) == 4
    assert len({drawn("system", 0, "batch", 3) for _ in range(3)}) == 3


def test_a_seed_has_32_bits_and_system_mode_the_whole_state(monkeypatch):
    """NumPy's Mersenne Twister with the operating system's words as its key is the oracle."""
    short = [torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1 + 2**32)]
    assert torch.equal(*short)  # why a seed from the operating system would not do
    words = np.random.default_rng(0).bytes(4 * 624)
    monkeypatch.setattr("dpsapf.privacy.noise.os.urandom", lambda count: words[:count])
    drawn = torch.randint(2**16, (3000,), generator=Draws("system", 0, "test").secret()).numpy()
    oracle = np.random.MT19937()
    oracle.state = {"bit_generator": "MT19937", "state": {"key": np.frombuffer(words, dtype=np.uint32), "pos": 624}}
    assert (drawn == oracle.random_raw(3000) % 2**16).all()
