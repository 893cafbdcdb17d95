"""KID: the loop over pairs, the libraries on the same subsets, and what Gaussians' moments say."""

import itertools

import numpy as np
import pytest
from cleanfid import fid as cleanfid
from torch_fidelity.metric_kid import kernel_mmd

from dpsapf.evaluation import kernels
from dpsapf.evaluation.kernels import discrepancy, kernel_distance
from dpsapf.support.errors import UserError
from tests.evaluation.test_gaussians import features, in_file


def over_pairs(first, second):
    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    within = sum(np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (first, second))
    return within - 2 * np.mean([kernel(x, y) for x in first for y in second])


@pytest.mark.parametrize(("shift", "counts"), [(0.0, (9, 9)), (0.3, (9, 9)), (1.0, (8, 13))])
def test_the_discrepancy_is_the_loop_over_pairs(shift, counts):
    first, second = (
        features(count, 5, moved, seed).astype(float) for count, moved, seed in zip(counts, (0, shift), (0, 1), strict=True)
    )
    assert discrepancy(first, second) == pytest.approx(over_pairs(first.tolist(), second.tolist()), rel=1e-10)


def test_known_arrays():
    """x = (0), (1) against y = (2), (3): k(x, x') = 1, k(y, y') = 343, k(x, y) = 1, 1, 27, 64."""
    first, second = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    assert discrepancy(first, second) == 1 + 343 - 2 * (1 + 1 + 27 + 64) / 4


def subsets_of(monkeypatch, run):
    """The subsets that a call compares."""
    drawn = []
    monkeypatch.setattr(kernels, "discrepancy", lambda *pair: drawn.append(pair) or discrepancy(*pair))
    return run(), drawn


def test_clean_fid_and_torch_fidelity_agree_on_the_same_subsets(monkeypatch):
    real, synthetic = features(300, 16), features(200, 16, 0.1, 1)
    (mean, spread), drawn = subsets_of(monkeypatch, lambda: kernel_distance(real, synthetic, 6, 50, 0))
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    values = [kernel_mmd(second, first, **settings) for first, second in drawn]
    assert mean == pytest.approx(np.mean(values), rel=1e-9) and spread == pytest.approx(np.std(values), rel=1e-9)
    chosen = iter([positions for first, second in drawn for positions in (rows_of(second, synthetic), rows_of(first, real))])
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(chosen))
    assert mean == pytest.approx(cleanfid.kernel_distance(real.astype(float), synthetic.astype(float), 6, 50), rel=1e-9)


def rows_of(some, whole):
    return np.array([np.flatnonzero((whole == row).all(1))[0] for row in some])


def test_a_subset_holds_no_image_twice_and_the_next_one_others(monkeypatch):
    real, synthetic = features(60, 4), features(50, 4, seed=1)
    _, drawn = subsets_of(monkeypatch, lambda: kernel_distance(real, synthetic, 3, 40, 0))
    positions = [[set(rows_of(rows, whole)) for rows, whole in zip(pair, (real, synthetic), strict=True)] for pair in drawn]
    assert all(len(chosen) == 40 for pair in positions for chosen in pair)
    assert positions[0] != positions[1] != positions[2]


def gaussian_discrepancy(one, other):
    """The squared discrepancy of two diagonal Gaussians: differences of their first three moments, weighted as in (t + 1)^3."""

    def tensors(mean, variance):
        spread = np.diag(variance)
        second = np.multiply.outer(mean, mean) + spread
        third = np.einsum("i,j,k->ijk", mean, mean, mean)
        third += (
            np.einsum("ij,k->ijk", spread, mean) + np.einsum("ik,j->ijk", spread, mean) + np.einsum("jk,i->ijk", spread, mean)
        )
        return mean, second, third

    dimensions = len(one[0])
    pairs = zip((3, 3, 1), (1, 2, 3), tensors(*one), tensors(*other), strict=True)
    return sum(weight * ((a - b) ** 2).sum() / dimensions**power for weight, power, a, b in pairs)


def drawn_from(mean, variance, count, seed):
    return (mean + np.sqrt(variance) * np.random.default_rng(seed).normal(size=(count, len(mean)))).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.6])
def test_the_mean_over_subsets_is_that_of_the_gaussians(shift):
    """The estimate is unbiased: 100 subsets of 20,000 images are within four standard errors of the closed form."""
    one = np.array([0.5, 0.0, 1.0]), np.array([1.0, 0.5, 0.2])
    other = one[0] + shift, np.array([1.0, 0.7, 0.2])
    mean, spread = kernel_distance(drawn_from(*one, 20_000, 0), drawn_from(*other, 20_000, 1), 100, 200, 0)
    assert abs(mean - gaussian_discrepancy(one, other)) < 4 * spread / np.sqrt(100)


def test_the_same_gaussian_is_below_zero_as_often_as_above():
    values = [kernel_distance(features(100), features(100, seed=seed), 1, 100, 0)[0] for seed in range(1, 60)]
    values = np.array(values) - np.mean(values)
    assert min(values) < 0 < max(values) and 0.3 < (values < 0).mean() < 0.8


def test_the_distance_grows_with_noise_and_is_symmetric():
    clean, noise = features(), np.random.default_rng(5).normal(size=(500, 12)).astype(np.float32)
    values = [kernel_distance(clean, clean + level * noise, 1, 500, 0)[0] for level in (0.1, 0.5, 1, 3)]
    assert values == sorted(values)
    back = kernel_distance(clean + noise, clean, 1, 500, 0)[0]
    assert back == pytest.approx(values[2], rel=1e-9)


def test_the_seed_decides_the_subsets_and_the_file_does_not(tmp_path):
    real, synthetic = features(), features(seed=1)
    values = [kernel_distance(real, synthetic, 3, 100, seed) for seed in (7, 7, 8)]
    assert values[0] == values[1] != values[2]
    assert kernel_distance(in_file(real, tmp_path), synthetic, 3, 100, 7) == values[0]


def test_features_that_are_no_numbers_are_told():
    values = features()
    values[417, 3] = np.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        kernel_distance(features(), values, 1, 500, 0)


@pytest.mark.parametrize("size", [1, 51])
def test_too_few_images_are_an_error(size):
    with pytest.raises(UserError, match="must be 2 to 50"):
        kernel_distance(features(), features(50), 1, size, 0)
