import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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


class Given:
    """A source whose draws are what a test gives."""

    def __init__(self, *draws):
        self.draws = np.array(draws)

    def uniform(self, count):
        assert count == len(self.draws)
        return self.draws


def seeded(name="x"):
    return SeededNoise(torch_generator(0, name))


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "ks")), SystemNoise()])
def test_noise_has_the_stated_scale(source):
    """A KS test that accepts sigma C and rejects 2/3 and 3/2 of it."""
    noise = add_gaussian_noise(torch.zeros(4000), 3.0, 0.5, source).numpy()
    assert stats.kstest(noise, stats.norm(0, 1.5).cdf).pvalue > 1e-4  # system noise differs in every run
    for wrong in (1.0, 2.25):
        assert stats.kstest(noise, stats.norm(0, wrong).cdf).pvalue < 1e-6


def test_noise_differs_between_generators_and_repeats_with_one():
    first, second, third = (add_gaussian_noise(torch.zeros(9), 1.0, 1.0, seeded(name)) for name in "aab")
    assert torch.equal(first, second) and not torch.equal(first, third)


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


@pytest.mark.parametrize("source", [seeded(), SystemNoise()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 1, 4), (0, 3)])
def test_noise_takes_the_shape_and_type_of_what_it_is_added_to(source, dtype, shape):
    noisy = add_gaussian_noise(torch.zeros(shape, dtype=dtype), 1.0, 1.0, source)
    assert noisy.shape == shape and noisy.dtype == dtype
    assert noisy.numel() == len(set(noisy.flatten().tolist()))  # a draw for each entry


def test_system_noise_has_no_seed():
    source = noise_source("system", torch_generator(0))
    assert not torch.equal(source.normal(torch.zeros(9)), noise_source("system", torch_generator(0)).normal(torch.zeros(9)))
    draws = source.uniform(10_000)
    assert draws.min() > 0 and draws.max() < 1 and stats.kstest(draws, "uniform").pvalue > 1e-4
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
    laplace = [add_laplace_noise(1.0, 2.0, source) for _ in range(2000)]
    assert stats.kstest(gumbel, stats.gumbel_r(0, 2).cdf).pvalue > 1e-4
    assert stats.kstest(laplace, stats.laplace(1, 2).cdf).pvalue > 1e-4
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


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_system_uniforms_stay_inside_the_open_interval(byte, monkeypatch):
    """Whatever the bits: an infinite normal would release the sum without noise worth the name."""
    monkeypatch.setattr("os.urandom", lambda count: byte * count)
    assert ((draws := SystemNoise().uniform(3)) > 0).all() and (draws < 1).all()
    assert torch.isfinite(SystemNoise().normal(torch.zeros(3))).all()


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
