"""FLD: its procedure written out with autograd in float64, and models whose order is known."""

import math

import numpy as np
import pytest
import torch

from dpsapf.evaluation import likelihood as module
from dpsapf.evaluation.gaussians import frechet, moments
from dpsapf.evaluation.likelihood import baseline, feature_likelihood, likelihood
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator
from tests.evaluation.test_gaussians import features, in_file

SEED = 3


def score_written_out(centres, fitted, images, batch):
    """100 times the mean negative log-likelihood over D: every density by its own formula, gradients by autograd."""
    dimensions = centres.shape[1]
    squares = torch.from_numpy(((fitted[:, None] - centres) ** 2).sum(2))
    logarithms = ((squares.min(0).values + 1e-3) / dimensions).log().requires_grad_()
    background = torch.zeros((), dtype=torch.float64, requires_grad=True)
    far = torch.from_numpy(((0.9 * (fitted - fitted.mean(0))) ** 2).sum(1))

    def logarithm(squared, variance):
        return -squared / (2 * variance) - dimensions / 2 * torch.log(2 * math.pi * variance)

    optimizer = torch.optim.Adam([logarithms, background], lr=0.5)
    for _ in range(50):
        for start in range(0, len(fitted), batch):
            some = slice(start, start + batch)
            inside = logarithm(squares[some], logarithms.exp()).exp().mean(1)
            loss = -torch.log(inside + logarithm(far[some], background.exp()).exp()).mean() / dimensions
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                logarithms.clamp_(-40, 20)
    squared = torch.from_numpy(((images[:, None] - centres) ** 2).sum(2))
    return -100 / dimensions * logarithm(squared, logarithms.exp()).logsumexp(1).sub(math.log(len(centres))).mean().item()


def scaled(*sets):
    """By the last set's mean and deviation, the test images'."""
    test = sets[-1].astype(np.float64)
    return [(some.astype(np.float64) - test.mean(0)) / test.std(0, ddof=1) for some in sets]


@pytest.mark.parametrize("batch", [10_000, 40])
@pytest.mark.parametrize("kept", [0, 1e9])
def test_it_is_the_procedure_written_out(monkeypatch, batch, kept):
    monkeypatch.setattr(module, "BATCH", batch)
    monkeypatch.setattr(module, "CHUNK", 20)
    monkeypatch.setattr(module, "KEPT", kept)
    sets = features(90, 6), features(35, 6, 0.1, 1), features(70, 6, seed=2)
    train, synthetic, test = scaled(*sets)
    order, halves = (numpy_generator(SEED, "likelihood", name).permutation(90) for name in ("train", "halves"))
    score = score_written_out(synthetic, train[order], test, batch)
    seen = score_written_out(synthetic, train[order], train, batch)
    subtracted = score_written_out(train[halves[:35]], train[halves[35:]], test, batch)
    found = likelihood(sets[0], sets[2], sets[1], "cpu", SEED)
    assert found.divergence == pytest.approx(score - subtracted, abs=0.01)
    assert found.gap == pytest.approx(seen - score, abs=0.01)
    assert baseline(sets[0], sets[2], 35, "cpu", SEED) == pytest.approx(subtracted, abs=0.01)


def real(count, seed):
    return features(count, 16, seed=seed)


TRAIN, TEST = real(600, 0), real(400, 1)


def fld(synthetic):
    return feature_likelihood(TRAIN, TEST, synthetic, "cpu", SEED)


def test_fresh_samples_of_the_same_distribution_are_as_good_as_training_images():
    assert abs(fld(real(300, 2))) < 2


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_copies_of_training_images_are_worse_than_fresh_samples_though_their_fid_is_lower(noise):
    copies = TRAIN[:300] + noise * np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    fresh = likelihood(TRAIN, TEST, real(300, 2), "cpu", SEED)
    copied = likelihood(TRAIN, TEST, copies, "cpu", SEED)
    assert copied.divergence > fresh.divergence + 100
    assert copied.gap < -100 < -5 < fresh.gap
    assert frechet(moments(TRAIN), moments(copies)) < frechet(moments(TRAIN), moments(real(300, 2)))


def test_it_grows_with_what_is_wrong():
    generator = np.random.default_rng(7)
    shifted = [fld(real(300, 2) + np.float32(shift)) for shift in (0, 0.5, 1, 2)]
    noisy = [fld(real(300, 2) + level * generator.normal(size=(300, 16)).astype(np.float32)) for level in (0, 1, 3)]
    fewer = [fld(real(300, 2)[:count].repeat(300 // count, axis=0)) for count in (300, 30, 3)]
    assert shifted == sorted(shifted) and noisy == sorted(noisy) and fewer == sorted(fewer)
    assert shifted[-1] > shifted[0] + 5


def test_a_baseline_that_was_kept_gives_the_same():
    subtracted = baseline(TRAIN, TEST, 300, "cpu", SEED)
    assert feature_likelihood(TRAIN, TEST, real(300, 2), "cpu", SEED, subtracted) == fld(real(300, 2))


def test_features_may_lie_in_a_file(tmp_path):
    files = [tmp_path / name for name in "abc"]
    sets = [TRAIN, TEST, real(300, 2)]
    for folder in files:
        folder.mkdir()
    stored = [in_file(some, folder) for some, folder in zip(sets, files, strict=True)]
    assert feature_likelihood(*stored, "cpu", SEED) == fld(sets[2])


def test_units_of_a_feature_do_not_matter():
    """Each is divided by the test images' deviation."""
    units, moved = np.geomspace(0.01, 100, 16).astype(np.float32), np.float32(3)
    sets = [some * units + moved for some in (TRAIN, TEST, real(300, 2))]
    assert feature_likelihood(*sets, "cpu", SEED) == pytest.approx(fld(real(300, 2)), abs=0.05)


def test_a_constant_feature_counts_as_one_more_dimension():
    sets = [np.hstack([some, np.full((len(some), 1), 4, np.float32)]) for some in (TRAIN, TEST, real(300, 2))]
    assert abs(feature_likelihood(*sets, "cpu", SEED)) < 2


def test_of_many_synthetic_images_some_are_drawn(monkeypatch):
    monkeypatch.setattr(module, "MOST_CENTRES", 100)
    synthetic = real(300, 2)
    drawn = np.sort(numpy_generator(SEED, "likelihood", "synthetic").choice(300, 100, replace=False))
    assert feature_likelihood(TRAIN, TEST, synthetic, "cpu", SEED) == pytest.approx(fld(synthetic[drawn]), abs=1e-9)


@pytest.mark.parametrize("wrong", range(3))
def test_features_that_are_no_numbers_are_told(wrong):
    sets = [real(40, seed) for seed in range(3)]
    sets[wrong][11, 3] = np.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        feature_likelihood(*sets, "cpu", SEED)


@pytest.mark.parametrize(("counts", "message"), [((3, 9, 9), "training"), ((9, 1, 9), "test"), ((9, 9, 0), "synthetic")])
def test_too_few_images_are_an_error(counts, message):
    with pytest.raises(UserError, match=f"{message} images.*or more"):
        feature_likelihood(*(real(count, 0) for count in counts), "cpu", SEED)
