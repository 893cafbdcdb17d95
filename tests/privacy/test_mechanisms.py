import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsapf.privacy.clipping import clip_factors, clipped_sum
from dpsapf.privacy.noise import (
    SeededNoise,
    SystemNoise,
    add_gaussian_noise,
    add_gumbel_noise,
    add_laplace_noise,
    noise_source,
    secret_generator,
)
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.support.randomness import torch_generator


def naive_clipped_sum(gradients, bound, clipping):
    """One image at a time."""
    sums = [torch.zeros_like(gradient[0]) for gradient in gradients]
    for image in range(len(gradients[0])):
        norm = math.sqrt(sum(gradient[image].double().square().sum().item() for gradient in gradients))
        factor = bound / (norm + 0.01) if clipping == "automatic" else min(1.0, bound / norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total += factor * gradient[image]
    return sums


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 6), bound=st.floats(0.1, 5), clipping=st.sampled_from(["flat", "automatic"]), seed=st.integers(0, 99)
)
def test_clipped_sum_equals_the_loop(images, bound, clipping, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(images, *shape, generator=generator) for shape in ((3, 4), (5,), (2, 1, 3))]
    sums, _ = clipped_sum(gradients, bound, clipping)
    for total, expected in zip(sums, naive_clipped_sum(gradients, bound, clipping), strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)  # fp32 sums in another order


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_sensitivity_on_neighbouring_batches(clipping, scale):
    """Removing any one image moves the joint sum by at most C."""
    generator = torch.Generator().manual_seed(1)
    gradients = [scale * torch.randn(8, 20, generator=generator), scale * torch.randn(8, 3, 3, generator=generator)]
    whole, _ = clipped_sum(gradients, 1.5, clipping)
    for image in range(8):
        rest = [gradient[torch.arange(8) != image] for gradient in gradients]
        without, _ = clipped_sum(rest, 1.5, clipping)
        change = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(whole, without, strict=True)))
        assert change <= 1.5 * (1 + 1e-5)  # fp32 rounding


def test_unclipped_sum_would_break_the_sensitivity():
    gradients = [torch.full((2, 4), 10.0)]
    assert gradients[0].sum(0).norm() - gradients[0][:1].sum(0).norm() > 1.5


def test_a_broken_image_contributes_nothing():
    gradients = [torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]])]
    sums, _ = clipped_sum(gradients, 2.0, "flat")
    assert sums[0].tolist() == [1.0, 0.0]
    assert clip_factors(torch.tensor([float("inf"), float("nan"), 0.0]), 1.0, "flat").tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "ks")), SystemNoise()])
def test_noise_has_the_stated_scale(source):
    """A KS test that accepts sigma C and rejects 2/3 and 3/2 of it."""
    noise = add_gaussian_noise(torch.zeros(4000), 3.0, 0.5, source).numpy()
    assert stats.kstest(noise, stats.norm(0, 1.5).cdf).pvalue > 1e-4  # system noise differs in every run
    for wrong in (1.0, 2.25):
        assert stats.kstest(noise, stats.norm(0, wrong).cdf).pvalue < 1e-6


def test_noise_differs_between_generators_and_repeats_with_one():
    first, second, third = (add_gaussian_noise(torch.zeros(9), 1.0, 1.0, SeededNoise(torch_generator(0, name))) for name in "aab")
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_system_noise_has_no_seed():
    source = noise_source("system", torch_generator(0))
    assert not torch.equal(source.normal(torch.zeros(9)), noise_source("system", torch_generator(0)).normal(torch.zeros(9)))
    draws = source.uniform(10_000)
    assert draws.min() > 0 and draws.max() < 1 and stats.kstest(draws, "uniform").pvalue > 1e-4
    assert source.normal(torch.zeros(2, 3, dtype=torch.float64)).shape == (2, 3)


@pytest.mark.parametrize("source", [SeededNoise(torch_generator(0, "others")), SystemNoise()])
def test_gumbel_and_laplace_have_the_stated_scale(source):
    gumbel = add_gumbel_noise(np.zeros(4000), 2.0, source)
    laplace = [add_laplace_noise(1.0, 2.0, source) for _ in range(2000)]
    assert stats.kstest(gumbel, stats.gumbel_r(0, 2).cdf).pvalue > 1e-4
    assert stats.kstest(laplace, stats.laplace(1, 2).cdf).pvalue > 1e-4
    for wrong in (2 * 2 / 3, 2 * 3 / 2):
        assert stats.kstest(gumbel, stats.gumbel_r(0, wrong).cdf).pvalue < 1e-6
        assert stats.kstest(laplace, stats.laplace(1, wrong).cdf).pvalue < 1e-6


def test_system_mode_draws_other_batches_every_time():
    batches = {tuple(poisson_batch(50, 0.5, secret_generator("system", 0, "x")).tolist()) for _ in range(3)}
    again = [poisson_batch(50, 0.5, secret_generator("seed", 0, "x")) for _ in range(2)]
    assert len(batches) == 3 and torch.equal(*again)


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


def test_poisson_batches_have_binomial_size_and_every_image_its_chance():
    sizes, counts = [], np.zeros(200)
    for step in range(400):
        batch = poisson_batch(200, 0.05, torch_generator(3, step)).numpy()
        sizes.append(len(batch))
        counts[batch] += 1
    assert np.mean(sizes) == pytest.approx(10, abs=4 * math.sqrt(9.5 / 400))  # four standard errors
    assert np.var(sizes) == pytest.approx(9.5, rel=0.3)  # four standard errors of a variance of 400 draws; a fixed size has 0
    assert stats.kstest(counts, stats.binom(400, 0.05).cdf).statistic < 0.15  # discrete cdf: a bound, not a p-value


def test_poisson_batch_may_be_empty_and_rate_one_is_everyone():
    assert any(len(poisson_batch(5, 0.05, torch_generator(0, step))) == 0 for step in range(20))
    assert poisson_batch(5, 1.0, torch_generator(0)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_system_uniforms_stay_inside_the_open_interval(byte, monkeypatch):
    """Whatever the bits: an infinite normal would release the sum without noise worth the name."""
    monkeypatch.setattr("os.urandom", lambda count: byte * count)
    assert ((draws := SystemNoise().uniform(3)) > 0).all() and (draws < 1).all()
