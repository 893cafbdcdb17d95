"""Votes against slow NumPy, on neighbouring data, and how they choose."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from dpsapf.evolution import votes
from dpsapf.evolution.votes import Electorate, drawn, first, nearest, one_image_each
from dpsapf.experiment.records import Release
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise, grid
from dpsapf.support.checked import replace
from dpsapf.support.randomness import numpy_generator, torch_generator

IMAGES, SYNTHETIC, CLASSES = 40, 12, 3
RELEASE = Release(name="pe-histogram", noise_multiplier=2.5, sensitivity=1.0, sampling_rate=1.0, steps=2, noise="seed")


def clouds(count, seed):
    """Features and labels of images, of every class some."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.normal(size=(count, 5))).float(), torch.from_numpy(np.arange(count) % CLASSES)


def electorate(kept=slice(None), users=None, noise="seed", seed=0):
    features, labels = clouds(IMAGES, 0)
    count = len(labels[kept]) if users is None else len(np.unique(users))
    return Electorate(features[kept], labels[kept], users, RELEASE, noise, seed, Meter(count), "cpu")


def opened(counts):
    """The histogram before its noise."""
    (values,) = counts.opened()
    return values.numpy()


def rounded_noise(normals):
    """Noise of a round, as whole steps of the grid."""
    spacing = grid(RELEASE.sensitivity, SYNTHETIC)
    return np.round(normals * RELEASE.noise_multiplier / spacing) * spacing


def oracle(features, labels, centres, classes):
    """Votes by two loops over fp64 distances."""
    counts = np.zeros(len(classes))
    for point, label in zip(features.double().numpy(), labels.numpy(), strict=True):
        distances = [
            np.sum((point - centre) ** 2) if label == other else np.inf
            for centre, other in zip(centres.double().numpy(), classes.numpy(), strict=True)
        ]
        counts[np.argmin(distances)] += 1
    return counts


def counted(kept=slice(None)):
    voters = electorate(kept)
    return opened(voters.histogram(torch.arange(len(voters.labels)), *clouds(SYNTHETIC, 1)))


def noise_of(step):
    return torch_generator(0, "evolve", step, "privacy noise")


def everybody(step=0, **changes):
    (votes,) = electorate(**changes).vote(*clouds(SYNTHETIC, 1), step).values
    return votes.numpy()


@pytest.mark.parametrize(("entries", "sizes"), [(2**24, [40]), (30, [2] * 20), (36, [3] * 13 + [1]), (1, [1] * 40)])
def test_every_image_votes_for_the_nearest_of_its_class_whatever_the_chunks(monkeypatch, entries, sizes):
    """As many distances are held at once as ``ENTRIES`` says, and a row at least."""
    seen = []
    monkeypatch.setattr(votes, "ENTRIES", entries)
    monkeypatch.setattr(votes, "nearest", lambda points, *others: seen.append(len(points)) or nearest(points, *others))
    expected = oracle(*clouds(IMAGES, 0), *clouds(SYNTHETIC, 1))
    assert (counted() == expected).all() and expected.sum() == IMAGES and (expected == 0).any()
    assert seen == sizes


def test_of_several_nearest_the_first_gets_the_vote_and_another_class_never_does():
    centres = torch.tensor([[0.0, 3.0], [5.0, 0.0], [0.0, 3.0], [0.0, -3.0], [0.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0, 1])
    points = torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    assert nearest(points, torch.tensor([0, 0, 1, 0]), centres, labels).tolist() == [0, 0, 4, 3]


@pytest.mark.parametrize("out", range(IMAGES))
def test_an_image_that_is_zeroed_out_takes_one_vote_away_and_moves_no_other(out):
    change = counted() - counted([image for image in range(IMAGES) if image != out])
    assert sorted(change.tolist()) == [0] * (SYNTHETIC - 1) + [1]


def test_a_user_that_is_zeroed_out_takes_one_vote_away_however_many_images_are_theirs():
    users = np.arange(IMAGES) // 13
    voters = one_image_each(users, torch_generator(0, "x"))
    whole = opened(electorate().histogram(voters, *clouds(SYNTHETIC, 1)))
    assert len(voters) == 4 and whole.sum() == 4
    for out in range(4):
        others = torch.cat([voters[:out], voters[out + 1 :]])
        change = whole - opened(electorate().histogram(others, *clouds(SYNTHETIC, 1)))
        assert sorted(change.tolist()) == [0] * (SYNTHETIC - 1) + [1]


def test_each_user_is_one_of_their_images_and_each_of_them_as_often():
    users = np.array([3, 1, 1, 3, 1, 0])
    draws = np.stack([one_image_each(users, torch_generator(seed, "x")).numpy() for seed in range(600)])
    assert (users[draws] == [0, 1, 3]).all()
    assert stats.chisquare(np.bincount(draws[:, 1])[[1, 2, 4]]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws[:, 2])[[0, 3]]).pvalue > 1e-3
    assert abs(np.corrcoef(draws[:, 1], draws[:, 2])[0, 1]) < 0.15, "users are drawn independently"


def voters_of_rounds(monkeypatch, noise):
    """Whose images stand for 20 users in two rounds."""
    seen, voters = [], electorate(users=np.arange(IMAGES) // 2, noise=noise)
    exact = Electorate.histogram
    monkeypatch.setattr(
        Electorate, "histogram", lambda self, chosen, *centres: seen.append(chosen) or exact(self, chosen, *centres)
    )
    for step in range(2):
        voters.vote(*clouds(SYNTHETIC, 1), step)
    return seen


def test_a_round_of_users_draws_anew_and_each_of_them_votes(monkeypatch):
    seen = voters_of_rounds(monkeypatch, "seed")
    assert all((chosen // 2 == torch.arange(20)).all() for chosen in seen) and (seen[0] != seen[1]).any()
    for step, chosen in enumerate(seen):
        assert (chosen == one_image_each(np.arange(IMAGES) // 2, torch_generator(0, "evolve", step, "voters"))).all()


def test_who_stands_for_a_user_is_secret_in_a_release(monkeypatch):
    draws = [torch.cat(voters_of_rounds(monkeypatch, noise)) for noise in ("seed", "seed", "system", "system")]
    assert (draws[0] == draws[1]).all() and (draws[2] != draws[3]).any() and (draws[0] != draws[2]).any()


def test_what_is_released_is_the_exact_histogram_and_gaussian_noise_on_every_bin():
    """Nothing is cut off before the noise, and no bin goes without; to the last bit."""
    source = SeededNoise(noise_of(0))
    noise = rounded_noise(source.normal(torch.zeros(SYNTHETIC, dtype=torch.float64)).numpy())
    assert (everybody() - noise == oracle(*clouds(IMAGES, 0), *clouds(SYNTHETIC, 1))).all() and noise.all()


@pytest.mark.parametrize("out", [0, 17, IMAGES - 1])
def test_with_the_same_noise_an_image_moves_one_released_vote_by_exactly_one(out):
    change = everybody() - everybody(kept=[image for image in range(IMAGES) if image != out])
    assert sorted(change.tolist()) == [0] * (SYNTHETIC - 1) + [1]


def test_noise_is_of_the_round_and_the_seed_and_of_neither_for_a_release():
    assert (everybody() == everybody()).all()
    assert (everybody() != everybody(seed=1)).all()
    assert (everybody() != everybody(step=1)).all()
    assert (everybody(noise="system") != everybody(noise="system")).all()


def test_the_meter_sees_who_votes_what_one_adds_and_the_noise():
    voters = electorate()
    for step in range(2):
        voters.vote(*clouds(SYNTHETIC, 1), step)
    measured = voters.meter.measured(1.0)
    assert measured.batches == (IMAGES, IMAGES) and measured.participation == (0, 0, IMAGES)
    assert measured.largest_contribution == 1 and measured.sizes == (SYNTHETIC,) and len(measured.squares) == 2
    normals = [torch.randn(SYNTHETIC, generator=noise_of(step), dtype=torch.float64).numpy() for step in range(2)]
    noise = rounded_noise(np.stack(normals)) / RELEASE.noise_multiplier
    assert measured.squares == pytest.approx((noise**2).sum(1), rel=1e-12)  # sums of 12 squares in another order
    assert voters.meter.release(RELEASE) == RELEASE and measured.secret == "seed"


@pytest.mark.parametrize(("noise", "users"), [("system", None), ("system", np.arange(IMAGES) // 2)])
def test_in_a_release_every_draw_is_secret(noise, users):
    voters = electorate(users=users, noise=noise)
    voters.vote(*clouds(SYNTHETIC, 1), 0)
    assert voters.meter.measured(1.0).secret == voters.meter.release(RELEASE).noise == "system"


@pytest.mark.parametrize(("seven", "most"), [(True, 7), (False, 1)])
def test_a_user_who_votes_by_several_images_is_seen(monkeypatch, seven, most):
    """Where as many images vote as there are users."""
    users = np.concatenate([np.zeros(7, dtype=np.int64), 1 + np.arange(33)])
    if seven:
        monkeypatch.setattr(votes, "one_image_each", lambda users, _: torch.arange(len(np.unique(users))))
    voters = electorate(users=users)
    voters.vote(*clouds(SYNTHETIC, 1), 0)
    measured = voters.meter.measured(1.0)
    assert (measured.largest_contribution, measured.surplus, measured.strangers) == (most, 0, 0)


def test_votes_of_more_than_the_batch_are_seen(monkeypatch):
    """Whoever adds them: an image that votes twice, or one that was not drawn."""
    everyone = Electorate.histogram
    others = {
        "twice": lambda self, chosen, *centres: everyone(self, torch.cat([chosen, chosen[:1]]), *centres),
        "not drawn": lambda self, chosen, *centres: everyone(self, torch.arange(IMAGES), *centres),
    }
    for histogram in others.values():
        voters = dataclasses.replace(electorate(), release=replace(RELEASE, sampling_rate=0.5))
        monkeypatch.setattr(Electorate, "histogram", histogram)
        voters.vote(*clouds(SYNTHETIC, 1), 0)
        measured = voters.meter.measured(1.0)
        assert measured.largest_contribution > 1 or measured.strangers


def test_images_are_drawn_in_proportion_to_their_votes_above_the_threshold():
    noisy, labels = np.array([5.0, 1.9, 3.0, -4.0, 2.5, 2.0]), np.array([0, 0, 0, 0, 1, 1])
    found = drawn(noisy, labels, np.array([3000, 7]), 2.0, numpy_generator(0, "x"))
    assert set(found[:3000]) == {0, 2} and found[3000:].tolist() == [4] * 7
    assert stats.chisquare(np.bincount(found[:3000])[[0, 2]], [2250, 750]).pvalue > 1e-3


def test_without_a_vote_above_the_threshold_all_of_the_class_are_drawn_alike():
    found = drawn(np.array([1.0, -2.0, 9.0]), np.array([0, 0, 1]), np.array([2000, 1]), 1.0, numpy_generator(0, "x"))
    assert stats.chisquare(np.bincount(found[:2000])).pvalue > 1e-3 and found[2000] == 2


def test_the_first_of_each_class_are_those_with_most_votes():
    noisy, labels = np.array([1.0, 7.0, 3.0, 3.0, -1.0, 8.0]), np.array([0, 1, 0, 0, 1, 0])
    assert first(noisy, labels, np.array([3, 1])).tolist() == [5, 2, 3, 1]
    assert first(np.zeros(500), np.zeros(500), np.array([400])).tolist() == list(range(400)), "of equal ones the first"
