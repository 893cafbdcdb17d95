import math

import numpy as np
import pytest
import torch
from scipy import stats

from dpsapf.privacy.noise_seen import NoiseSeen, likeness
from dpsapf.support.randomness import torch_generator


def pair(one, other):
    return likeness(one.double(), other[None])


def test_likeness_is_the_chance_of_so_large_a_cosine():
    generator = torch_generator(0, "likeness")
    values = np.array([pair(*torch.randn(2, 8, generator=generator, dtype=torch.float64)) for _ in range(2000)])
    assert stats.kstest(values, stats.uniform.cdf).pvalue > 1e-4
    one = torch.arange(1.0, 9.0)
    assert pair(one, -3 * one) < 1e-20 and pair(one, torch.zeros(8)) == 0 and pair(one[:1], one[:1]) == 1
    assert likeness(one.double(), torch.stack([torch.ones(8), -3 * one])) < 1e-20 and likeness(one, torch.zeros(0, 8)) == 1


def test_likeness_of_two_and_of_three_numbers_is_that_of_directions_on_a_circle_and_on_a_sphere():
    for degrees in (30, 60, 80):
        angle = math.radians(degrees)
        assert pair(torch.tensor([2.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])) == pytest.approx(degrees / 90)
    assert pair(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])) == pytest.approx(0.4)


@pytest.mark.parametrize("sizes", [(7,), (600, 12), (1, 9000, 3), (5000, 5000)])
def test_places_are_of_every_tensor_by_its_size_and_all_of_few(sizes):
    seen = NoiseSeen()
    for step in range(2):
        seen.add([torch.randn(size, generator=torch_generator(step, "x"), dtype=torch.float64) for size in sizes], list(sizes))
    shares = [len(places) for places in seen._places]
    assert all(
        len(places.unique()) == len(places) and places.max() < size for places, size in zip(seen._places, sizes, strict=True)
    )
    assert min(4096, sum(sizes)) <= seen.looked_at <= 4096 + len(sizes) and sum(seen.cells) == 2 * seen.looked_at
    assert all(min(size, 4096 * size // sum(sizes)) <= share <= size for share, size in zip(shares, sizes, strict=True))
    assert min(shares) >= 1


def test_sums_are_of_each_tensor_and_of_all_together():
    seen, noise = NoiseSeen(), np.random.default_rng(0).standard_normal((3, 50))
    for step in noise:
        seen.add([torch.from_numpy(step[:20]), torch.from_numpy(step[20:])], [20, 30])
    expected = [(noise[:, part].sum(1) ** 2).sum() / noise[:, part].shape[1] for part in (np.s_[:20], np.s_[20:], np.s_[:])]
    assert seen.sums == pytest.approx(expected)
    again = NoiseSeen()
    again.restore(*seen.state())
    assert again.sums == seen.sums


def test_noise_that_takes_all_earlier_noise_away_is_like_their_sum():
    seen, total = NoiseSeen(), torch.zeros(50, dtype=torch.float64)
    for step in range(3):
        noise = torch.randn(50, generator=torch_generator(step, "x"), dtype=torch.float64)
        total += noise
        seen.add([noise], [50])
    assert seen.repetition > 1e-6
    seen.add([-total], [50])
    assert seen.repetition < 1e-20 and seen.sum_squares == pytest.approx(0, abs=1e-20)
