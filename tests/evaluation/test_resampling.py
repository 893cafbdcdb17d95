"""Bootstrap intervals: how often they hold what they should, and FID's without a root per draw."""

import numpy as np
import pytest

from dpsapf.evaluation import resampling
from dpsapf.evaluation.gaussians import Moments, frechet, moments
from dpsapf.evaluation.resampling import bootstrap_interval, frechet_interval
from tests.evaluation.test_gaussians import features, in_file

REPETITIONS = 300  # 95 % of them hold with a standard error of 1.3 %


def share_that_hold(truth, statistic, count, confidence=0.95):
    """How often an interval over skewed values holds a statistic's mean."""
    generator, held = np.random.default_rng(0), 0
    for seed in range(REPETITIONS):
        values = generator.gamma(2.0, size=count)
        low, high = bootstrap_interval(lambda rows, values=values: statistic(values[rows]), count, seed, 200, confidence)
        held += low <= truth <= high
    return held / REPETITIONS


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.90, 0.99), (0.5, 0.42, 0.58)])
def test_an_interval_of_the_mean_holds_as_often_as_it_says(confidence, least, most):
    assert least <= share_that_hold(2.0, np.mean, 60, confidence) <= most


def test_an_interval_of_a_statistic_with_a_bias_holds_its_mean_at_this_number_of_images():
    """The squared mean is 2 / 60 too large on average; so it is in the interval's middle. Plain percentiles had it twice."""
    assert 0.90 <= share_that_hold(4 + 2 / 60, lambda values: values.mean() ** 2, 60) <= 0.99


def test_intervals_of_fid_hold_what_fid_is_at_this_number_of_images():
    """The bias, D (D + 5) / (4 n), is many times the spread: plain percentiles would hold it never."""
    truth, dimensions, count = Moments(1000, np.zeros(16), np.eye(16)), 16, 200
    sets = [np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32) for seed in range(100)]
    mean = np.mean([frechet(truth, moments(some)) for some in sets])
    intervals = np.array([frechet_interval(truth, some, 0, 60) for some in sets])
    assert 0.88 <= ((intervals[:, 0] <= mean) & (mean <= intervals[:, 1])).mean() <= 1
    assert (intervals[:, 0] > 0).all()


@pytest.mark.parametrize("count", [8, 15, 40, 300])
@pytest.mark.parametrize("chunk", [16, 1024])
def test_the_interval_of_fid_is_the_plain_one(monkeypatch, tmp_path, count, chunk):
    """With fewer images than features and with more; the real covariance is singular, too."""
    monkeypatch.setattr(resampling, "CHUNK", chunk)
    known, synthetic = features(), features(count, seed=1, shift=0.1)
    known[:, 3] = 1
    real = moments(known)
    plain = bootstrap_interval(lambda rows: frechet(real, moments(synthetic[rows])), count, 5, 30)
    assert frechet_interval(real, in_file(synthetic, tmp_path), 5, 30) == pytest.approx(plain, rel=1e-6)


def test_more_images_and_less_confidence_make_it_narrower():
    def width(count, confidence=0.95):
        values = np.random.default_rng(1).normal(size=count)
        low, high = bootstrap_interval(lambda rows: values[rows].mean(), count, 0, 400, confidence)
        return high - low

    assert width(100) == pytest.approx(2 * 1.96 / 10, rel=0.2)
    assert width(10_000) < 0.2 * width(100) and width(100, 0.5) < 0.5 * width(100)


def test_the_seed_decides_the_draws():
    values = np.random.default_rng(1).normal(size=50)
    found = [bootstrap_interval(lambda rows: values[rows].mean(), 50, seed, 20) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_statistic_that_never_changes_has_no_width():
    assert bootstrap_interval(lambda rows: 0.25, 9, 0, 10) == (0.25, 0.25)
