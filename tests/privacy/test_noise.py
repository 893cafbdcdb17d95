import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsapf.privacy import noise as noise_module
from dpsapf.privacy.noise import (
    SeededNoise,
    SystemNoise,
    add_gaussian_noise,
    add_gumbel_noise,
    add_laplace_noise,
    noise_source,
    secret_generator,
)
from dpsapf.support.randomness import torch_generator

BLOCK = 2**16  # numbers that are drawn at a time
FOR_TWO = 2**19  # numbers that are worth two threads
BY_CHANCE = 1e-8  # system noise differs in every run: how often a test of it may fail


class Given:
    """A source whose draws are what a test gives."""

    def __init__(self, *draws):
        self.draws = np.array(draws)

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
    noise = add_gaussian_noise(torch.zeros(4000), 3.0, 0.5, source).numpy()
    assert stats.kstest(noise, stats.norm(0, 1.5).cdf).pvalue > BY_CHANCE
    for wrong in (1.0, 2.25):
        assert stats.kstest(noise, stats.norm(0, wrong).cdf).pvalue < 1e-6


def test_noise_differs_between_generators_and_repeats_with_one():
    first, second, third = (add_gaussian_noise(torch.zeros(9), 1.0, 1.0, seeded(name)) for name in "aab")
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_seeded_uniforms_differ_between_generators_and_repeat_with_one():
    first, second, third = (seeded(name).uniform(9).tolist() for name in "aab")
    assert first == second and len({*first, *third}) == 18


@pytest.mark.parametrize("source", [seeded(), SystemNoise()])
@pytest.mark.parametrize("count", [0, 3])
def test_draws_are_in_double_precision_where_it_is_asked_for(source, count):
    assert source.normal(torch.zeros(count, dtype=torch.float64)).dtype == torch.float64
    assert source.uniform(count).dtype == np.float64


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
    noise = add_gaussian_noise(sums, sigma, sensitivity, seeded()) - value
    unit = add_gaussian_noise(torch.zeros(4, dtype=torch.float64), 1.0, 1.0, seeded())
    torch.testing.assert_close(noise, sigma * sensitivity * unit, rtol=1e-9, atol=1e-10)
    assert (sums == value).all()  # the exact sum is left as it was


class Fixed:
    """A source of known draws."""

    kind = "seed"

    def normal(self, like):
        return torch.linspace(-3, 3, len(like), dtype=torch.float64)


def test_a_sum_with_its_noise_is_rounded_once():
    """Scaled and added in fp64: in fp32 each of the three roundings leaves a grid of its own."""
    value = torch.linspace(0.1, 7.7, 1001, dtype=torch.float32)
    exact = value.double() + 0.7 * 1.3 * Fixed().normal(value)
    assert torch.equal(add_gaussian_noise(value, 0.7, 1.3, Fixed()), exact.float())
    in_fp32 = value + 0.7 * 1.3 * Fixed().normal(value).float()
    assert not torch.equal(in_fp32, exact.float())


@pytest.mark.parametrize("source", [seeded(), SystemNoise()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 1, 4), (0, 3)])
def test_noise_takes_the_shape_and_type_of_what_it_is_added_to(source, dtype, shape):
    noisy = add_gaussian_noise(torch.zeros(shape, dtype=dtype), 1.0, 1.0, source)
    assert noisy.shape == shape and noisy.dtype == dtype
    assert noisy.numel() <= 1 + len(set(noisy.flatten().tolist()))  # a draw for each entry; two of 32 bits may be equal


def test_system_noise_has_no_seed():
    source = noise_source("system", torch_generator(0))
    assert not torch.equal(source.normal(torch.zeros(9)), noise_source("system", torch_generator(0)).normal(torch.zeros(9)))
    draws = source.uniform(10_000)
    assert draws.min() > 0 and draws.max() < 1 and stats.kstest(draws, "uniform").pvalue > BY_CHANCE
    assert source.normal(torch.zeros(2, 3, dtype=torch.float64)).shape == (2, 3)


@pytest.mark.parametrize("mode", ["seed", "system"])
def test_only_seed_mode_uses_the_generator(mode):
    generator = torch_generator(0)
    before = generator.get_state()
    source = noise_source(mode, generator)
    source.normal(torch.zeros(3))
    source.uniform(3)
    assert torch.equal(generator.get_state(), before) == (mode == "system")


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "others")), SystemNoise()])
def test_gumbel_and_laplace_have_the_stated_scale(source):
    gumbel = add_gumbel_noise(np.zeros(4000), 2.0, source)
    laplace = [add_laplace_noise(1.0, 2.0, source) for _ in range(8000)]
    assert stats.kstest(gumbel, stats.gumbel_r(0, 2).cdf).pvalue > BY_CHANCE
    assert stats.kstest(laplace, stats.laplace(1, 2).cdf).pvalue > BY_CHANCE
    for wrong in (2 * 2 / 3, 2 * 3 / 2):
        assert stats.kstest(gumbel, stats.gumbel_r(0, wrong).cdf).pvalue < 1e-6
        assert stats.kstest(laplace, stats.laplace(1, wrong).cdf).pvalue < 1e-6


@settings(max_examples=50, deadline=None)
@given(draw=st.floats(1e-12, 1 - 1e-12), scale=st.floats(0.01, 100), value=st.floats(-10, 10))
def test_gumbel_and_laplace_are_scipys_quantiles(draw, scale, value):
    """Inversion: the uniform draw is the probability of less noise."""
    tolerance = {"rel": 1e-6, "abs": 1e-6 * scale}
    assert add_laplace_noise(value, scale, Given(draw)) - value == pytest.approx(stats.laplace.ppf(draw) * scale, **tolerance)
    gumbel = add_gumbel_noise(np.array([value]), scale, Given(draw))
    assert gumbel[0] - value == pytest.approx(stats.gumbel_r.ppf(draw) * scale, **tolerance)


def test_every_entry_gets_its_own_gumbel_noise():
    noisy = add_gumbel_noise(np.array([5.0, 0.0, 0.0]), 1.0, Given(0.2, 0.2, 0.9))
    assert noisy[0] == noisy[1] + 5 and noisy[2] > noisy[1]


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
    assert SystemNoise().uniform(0).shape == (0,)
    uniform = Written(words.ravel()).uniform(words.size)
    assert uniform.min() == 2.0**-53 and uniform.max() == 1 - 2.0**-53


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
    np.testing.assert_array_equal(source.uniform(count), ((words[:count] >> 12) + 0.5) * 2.0**-52)
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
    assert noise_source(mode, torch_generator(0)).kind == mode


def test_seeded_uniforms_are_never_0(monkeypatch):
    """torch draws from [0, 1); the logarithm of 0 would be infinite noise."""
    monkeypatch.setattr(torch, "rand", lambda count, **keywords: torch.zeros(count, dtype=torch.float64))
    assert (seeded().uniform(3) > 0).all()
    assert np.isfinite(add_gumbel_noise(np.zeros(3), 1.0, seeded())).all()
    assert math.isfinite(add_laplace_noise(0.0, 1.0, seeded()))


def test_secret_draws_follow_the_seed_and_the_name_or_nothing_at_all():
    def drawn(mode, seed, *names):
        return tuple(torch.rand(4, generator=secret_generator(mode, seed, *names)).tolist())

    assert drawn("seed", 0, "batch", 3) == drawn("seed", 0, "batch", 3)
    assert len({drawn("seed", seed, name) for seed in (0, 1) for name in "ab"}) == 4
    assert len({drawn("system", 0, "batch", 3) for _ in range(3)}) == 3


def test_a_seed_has_32_bits_and_system_mode_the_whole_state(monkeypatch):
    """NumPy's Mersenne Twister with the operating system's words as its key is the oracle."""
    short = [torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1 + 2**32)]
    assert torch.equal(*short)  # why a seed from the operating system would not do
    words = np.random.default_rng(0).bytes(4 * 624)
    monkeypatch.setattr("dpsapf.privacy.noise.os.urandom", lambda count: words[:count])
    drawn = torch.randint(2**16, (3000,), generator=secret_generator("system", 0)).numpy()
    oracle = np.random.MT19937()
    oracle.state = {"bit_generator": "MT19937", "state": {"key": np.frombuffer(words, dtype=np.uint32), "pos": 624}}
    assert (drawn == oracle.random_raw(3000) % 2**16).all()
