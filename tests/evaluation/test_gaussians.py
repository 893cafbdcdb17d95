"""FID: closed forms, the libraries on the same features, singular covariances, and no bias for many images."""

import numpy as np
import pytest
from cleanfid.fid import frechet_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric

from dpsapf.evaluation import gaussians
from dpsapf.evaluation.gaussians import Moments, frechet, frechet_infinity, moments
from dpsapf.support.arrays import open_arrays, writing
from dpsapf.support.errors import UserError

ROUNDING = 1e-9  # of float64 sums over hundreds of products, relative to the covariances' trace
ROOT_OF_ROUNDING = 1e-6  # an eigenvalue that should be 0 is up to 1e-16 of the largest squared; the distance has its root


def features(count=500, dimensions=12, shift=0.0, seed=0):
    """Features that depend on each other, with spreads from 1 to 0.1, away from 0 as those of a ReLU are."""
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dimensions, dimensions)) * np.geomspace(1, 0.1, dimensions)
    return (generator.normal(size=(count, dimensions)) @ mix + 2 + shift).astype(np.float32)


def in_file(values, folder):
    with writing(folder / "features.safetensors", {"features": ("F32", values.shape)}) as writer:
        writer.put("features", 0, values)
    return open_arrays(folder / "features.safetensors")[0]["features"]


def diagonal(mean, deviations):
    return Moments(1000, np.asarray(mean, float), np.diag(np.square(deviations)))


@pytest.mark.parametrize("chunk", [1, 7, 499, 4096])
def test_moments_match_numpy_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setattr(gaussians, "CHUNK", chunk)
    found, values = moments(features()), features().astype(np.float64)
    assert found.count == 500
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(values.T), rtol=1e-10, atol=1e-12)


def test_moments_of_a_file_are_those_of_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr(gaussians, "CHUNK", 64)
    one, other = moments(features()), moments(in_file(features(), tmp_path))
    assert (one.mean == other.mean).all() and (one.covariance == other.covariance).all()


def test_moments_of_features_far_from_zero_keep_their_digits():
    """A spread of 1 at 30,000: sums of squares without the shift would lose nine of sixteen digits, in fp32 all."""
    values = features() + np.float32(30_000)
    np.testing.assert_allclose(moments(values).covariance, np.cov(values.astype(np.float64).T), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(count):
    with pytest.raises(UserError, match="two or more"):
        moments(features()[:count])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_told(wrong):
    values = features()
    values[417, 3] = wrong
    with pytest.raises(UserError, match="NaN or infinity"):
        moments(values)


def test_closed_form_of_diagonal_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    one, other = diagonal([0, 1, 2], [1, 2, 3]), diagonal([1, 1, 0], [2, 2, 0.5])
    assert frechet(one, other) == pytest.approx(5 + 1 + 6.25, rel=1e-12)


def test_closed_form_of_gaussians_that_are_scaled():
    """B = 4 A has the distance tr(A), whatever A is."""
    one = moments(features())
    other = Moments(500, one.mean + 3, 4 * one.covariance)
    assert frechet(one, other) == pytest.approx(9 * 12 + np.trace(one.covariance), rel=ROUNDING)


def test_a_set_with_itself_is_at_distance_zero():
    one = moments(features())
    assert abs(frechet(one, one)) < ROUNDING * np.trace(one.covariance)


@pytest.mark.parametrize("count", [5, 12, 500])
def test_the_distance_is_symmetric(count):
    one, other = moments(features(count)), moments(features(seed=1, shift=0.2))
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=ROUNDING)


def test_the_distance_grows_with_noise():
    clean, noise = features(), np.random.default_rng(5).normal(size=(500, 12)).astype(np.float32)
    values = [frechet(moments(clean), moments(clean + level * noise)) for level in (0, 0.1, 0.3, 1, 3)]
    assert values == sorted(values) and values[0] < 1e-8 < values[1] and values[-1] > 10


def both_libraries(one, other):
    known = fid_statistics_to_metric(
        {"mu": one.mean, "sigma": one.covariance}, {"mu": other.mean, "sigma": other.covariance}, False
    )
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance), known["frechet_inception_distance"]


@pytest.mark.parametrize("dimensions", [2, 12, 64])
@pytest.mark.parametrize("shift", [0.0, 0.05, 1.0])
def test_the_distance_is_that_of_the_libraries(dimensions, shift):
    one, other = (moments(features(500, dimensions, moved, seed)) for moved, seed in ((0, 0), (shift, 1)))
    for known in both_libraries(one, other):
        assert frechet(one, other) == pytest.approx(known, rel=1e-8)


def by_eigenvectors(one, other):
    """The formula of the symmetric product with A^(1/2) itself."""
    values, vectors = np.linalg.eigh(one.covariance)
    half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(half @ other.covariance @ half).clip(0)).sum()
    return ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance) - 2 * trace


def by_singular_values(first, second):
    """tr (A B)^(1/2) as the sum of the singular values of X Y^T over n - 1: of the features, no covariance is made."""
    one, two = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (first.astype(np.float64), second.astype(np.float64)))
    difference = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    return difference @ difference + (one**2).sum() + (two**2).sum() - 2 * np.linalg.svd(one @ two.T, compute_uv=False).sum()


@pytest.mark.parametrize("counts", [(500, 500), (5, 500), (500, 5), (5, 7), (2, 2), (12, 13)])
def test_few_images_and_so_singular_covariances(counts):
    first, second = features(counts[0]), features(counts[1], seed=1, shift=0.3)
    one, other = moments(first), moments(second)
    assert frechet(one, other) == pytest.approx(by_singular_values(first, second), rel=ROUNDING)
    assert frechet(one, other) == pytest.approx(by_eigenvectors(one, other), rel=ROOT_OF_ROUNDING)


@pytest.mark.parametrize("dead", [(0,), (1, 3, 4), tuple(range(12))])
def test_constant_features(dead):
    first, second = features(), features(seed=1, shift=0.3)
    first[:, dead], second[:, dead] = 0.5, 0.75
    expected = by_singular_values(first, second)
    assert frechet(moments(first), moments(second)) == pytest.approx(expected, rel=ROOT_OF_ROUNDING)


def test_a_generator_of_one_image_is_at_the_mean_difference_and_the_real_spread():
    real, image = moments(features()), features(1, seed=9)
    expected = ((real.mean - image[0]) ** 2).sum() + np.trace(real.covariance)
    assert frechet(real, moments(np.repeat(image, 50, axis=0))) == pytest.approx(expected, rel=ROUNDING)


def standard(count, dimensions=20, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_limit_has_no_bias_and_the_distance_the_known_one(shift):
    """n images of a standard Gaussian are D / n farther by their mean, D (D + 1) / (4 n) by their covariance (first order)."""
    truth, sets = diagonal(np.full(20, shift), np.ones(20)), [standard(2000, seed=seed) for seed in range(8)]
    at_n, limits = [frechet(truth, moments(some)) for some in sets], [frechet_infinity(truth, some, 0) for some in sets]
    distance, bias = 20 * shift**2, 20 * 25 / (4 * 2000)
    assert abs(np.mean(at_n) - distance - bias) < max(0.1 * bias, 3 * np.std(at_n) / np.sqrt(8))
    assert abs(np.mean(limits) - distance) < 3 * np.std(limits) / np.sqrt(8)
    if not shift:
        assert max(np.abs(limits)) < 0.5 * bias < min(at_n)


@pytest.mark.parametrize("chunk", [10, 1024])
def test_the_limit_is_the_intercept_over_one_random_order(monkeypatch, tmp_path, chunk):
    monkeypatch.setattr(gaussians, "CHUNK", chunk)
    truth, values = moments(features()), features(95, seed=3, shift=0.1)
    order = gaussians.numpy_generator(4, "frechet-infinity").permutation(95)
    counts = np.array([9, 30, 52, 73, 95])
    distances = [frechet(truth, moments(values[order[:count]])) for count in counts]
    expected = np.linalg.lstsq(np.stack([np.ones(5), 1 / counts], 1), distances, rcond=None)[0][0]
    assert frechet_infinity(truth, in_file(values, tmp_path), 4, points=5) == pytest.approx(expected, rel=1e-7)


def test_the_limit_needs_twenty_images():
    frechet_infinity(moments(features()), features(20), 0)
    with pytest.raises(UserError, match="20 or more"):
        frechet_infinity(moments(features()), features(19), 0)
