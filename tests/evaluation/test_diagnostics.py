"""Copies are found, fresh images are level, and nothing of it looks fit to be published."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from dpsapf.datasets.archive import write_archive
from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation import diagnostics as module
from dpsapf.evaluation.diagnostics import (
    Diagnostics,
    Search,
    area,
    diagnose,
    diagnosis,
    measure,
    nearest_pairs,
    pixel_batches,
    true_positives,
)
from dpsapf.experiment.stages import Diagnose
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record
from tests.prepared_dataset import write_dataset


def images(count, seed, side=4):
    """New images of one distribution: smooth random colours with noise."""
    generator = np.random.default_rng(seed)
    return (
        (generator.uniform(40, 200, (count, 1, 1, 3)) + generator.normal(0, 15, (count, side, side, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def measured(synthetic, train=300, test=200, seed=0):
    distances = measure(pixel_batches, synthetic, images(train, 1), images(test, 2), seed, "cpu")
    return diagnosis(distances, 100, 0), distances


def test_copies_of_training_images_are_found():
    found, distances = measured(images(300, 1))
    assert not distances.to_train.any() and not distances.train_to_synthetic.any()
    assert found.copying == 1 and found.copying_interval == (1, 1)
    assert found.membership_auc == 1 and found.membership_true_positives == 1
    assert found.closer_to_training > 0.7  # 200 of the 300 are among those that are compared; the others are level


def test_copies_of_test_images_are_the_opposite():
    found, _ = measured(images(200, 2))
    assert found.membership_auc == pytest.approx(0, abs=0.01) and found.closer_to_training == pytest.approx(0, abs=0.01)
    assert found.copying == pytest.approx(0.5, abs=1e-9)  # test images are as far from training images as themselves


def test_fresh_images_are_level():
    """On average over eight draws of everything; the standard deviation of one is about 0.03."""
    found = []
    for seed in range(8):
        synthetic, train, test = images(300, 100 + seed), images(300, 200 + seed), images(200, 300 + seed)
        found.append(diagnosis(measure(pixel_batches, synthetic, train, test, 0, "cpu"), 60, 0))
    for name in ("copying", "closer_to_training", "membership_auc"):
        assert np.mean([getattr(each, name) for each in found]) == pytest.approx(0.5, abs=0.04), name
        intervals = [getattr(each, f"{name}_interval") for each in found]
        assert sum(low < 0.5 < high for low, high in intervals) >= 6 and all(high - low < 0.2 for low, high in intervals), name
    assert np.mean([each.membership_true_positives for each in found]) < 0.04


def test_a_tenth_of_copies_shows_in_few_false_positives():
    """The mean over all images hides them; the nearest distances do not."""
    mixed = np.concatenate([images(300, 1)[:30], images(270, 3)])
    found, distances = measured(mixed)
    level, _ = measured(images(300, 3))
    assert found.membership_true_positives >= 0.1 > level.membership_true_positives
    assert found.distances_to_training[0] == 0 < found.distances_to_test[0]
    assert sorted(row for row, _, _ in nearest_pairs(distances, 30)) == list(range(30))
    assert all(row == nearest and distance == 0 for row, nearest, distance in nearest_pairs(distances, 30))


@pytest.mark.parametrize("blocks", [(50,), (1, 20, 29), (7, 0, 43)])
def test_neighbours_are_those_of_all_pairs(blocks):
    generator = np.random.default_rng(0)
    points, centres = (100 + generator.normal(size=(count, 6)).astype(np.float32) for count in (50, 33))
    search, start = Search(centres, "cpu"), 0
    for size in blocks:
        search.add(points[start : start + size])
        start += size
    pairs = cdist(points, centres)
    np.testing.assert_allclose(search.of_points, pairs.min(1), rtol=1e-6)
    np.testing.assert_allclose(search.distances, pairs.min(0), rtol=1e-6)
    assert np.array_equal(search.nearest, pairs.argmin(0))


def test_distances_in_a_space_are_those_of_all_pairs():
    synthetic, train, test = images(40, 5), images(70, 1), images(30, 2)
    found = measure(pixel_batches, synthetic, train, test, 0, "cpu")
    flat = [each.reshape(len(each), -1) / 255 for each in (synthetic, train, test)]
    for ours, theirs in (
        (found.to_train, cdist(flat[0], flat[1]).min(1)),
        (found.to_some_test, cdist(flat[0], flat[2]).min(1)),
        (found.test_to_train, cdist(flat[2], flat[1]).min(1)),
        (found.train_to_synthetic, cdist(flat[1], flat[0]).min(1)),
        (found.test_to_synthetic, cdist(flat[2], flat[0]).min(1)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert (found.to_some_train >= found.to_train).all() and (found.to_some_train > found.to_train).any()


@pytest.mark.parametrize("size", [7, 1000])
def test_the_batch_does_not_matter(monkeypatch, size):
    synthetic, train, test = images(40, 5), images(70, 1), images(80, 2)
    expected = measure(pixel_batches, synthetic, train, test, 0, "cpu")
    monkeypatch.setattr(module, "BATCH", size)
    found = measure(pixel_batches, synthetic, train, test, 0, "cpu")
    for name in ("to_train", "nearest", "to_some_train", "to_some_test", "test_to_train", "train_to_synthetic"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)


def test_as_many_training_as_test_images_are_compared():
    for train, test in ((70, 30), (30, 70), (30, 30)):
        marks = [module._some(count, min(train, test), 0) for count in (train, test)]
        assert [int(mark.sum()) for mark in marks] == [min(train, test)] * 2


def test_the_area_is_sklearns_with_ties():
    generator = np.random.default_rng(0)
    near, far = generator.integers(0, 9, 50).astype(float), generator.integers(2, 11, 40).astype(float)
    labels = np.repeat([1, 0], [50, 40])
    assert area(near, far) == pytest.approx(roc_auc_score(labels, -np.concatenate([near, far])))


def test_true_positives_are_counted_at_the_threshold():
    """Of 200 others two may be taken for members: those below the third smallest of them."""
    others, members = np.arange(200.0), np.array([-1.0, 1.5, 1.7, 2.5, 90.0])
    assert true_positives(members, others) == pytest.approx(3 / 5)
    assert true_positives(members, np.arange(50.0)) == pytest.approx(1 / 5)  # of 50 none may be


def test_fewer_than_100_test_images_tell_nothing_at_one_percent():
    found, _ = measured(images(30, 3), test=99)
    assert found.membership_true_positives is None and found.membership_true_positives_interval is None
    assert measured(images(30, 3), test=100)[0].membership_true_positives is not None


def test_intervals_narrow_with_more_images():
    wide, narrow = (measured(images(300, 3), train=count, test=count)[0].membership_auc_interval for count in (60, 900))
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])


def test_large_images_are_compared_in_pixels_at_a_smaller_side():
    (points,) = pixel_batches(images(3, 0, side=64))
    assert points.shape == (3, 32 * 32 * 3) and points.dtype == np.float32 and 0 <= points.min() <= points.max() <= 1
    (points,) = pixel_batches(images(3, 0, side=5))
    assert np.array_equal(points, (images(3, 0, side=5).reshape(3, -1) / 255).astype(np.float32))


def options(folder, **changes):
    values = {
        "synthetic": folder / "same.npz",
        "archive": folder / "dataset.safetensors",
        "protocol": "tiny-v1",
        "registry": folder / "protocols.yaml",
        "out": folder / "diagnostics.json",
        "sheet": folder / "private_nearest.png",
        "draws": 30,
        "pairs": 3,
    }
    return Diagnose(**(values | changes))


def test_the_record_says_that_it_is_outside_the_guarantee(folder):
    diagnose(options(folder))
    found = read_record(folder / "diagnostics.json", Diagnostics)
    assert found.outside_the_guarantee and found.protocol == "tiny-v1" and set(found.spaces) == {"features", "pixels"}
    assert all(space.copying > 0.9 and space.membership_auc > 0.9 for space in found.spaces.values())  # they are copies
    assert (found.synthetic_images, found.train_images, found.test_images, found.compared_images) == (60, 60, 20, 20)
    first = (folder / "diagnostics.json").read_bytes()
    diagnose(options(folder))
    assert (folder / "diagnostics.json").read_bytes() == first
    assert not {"image", "position", "nearest"} & set(json.loads(first))


def test_the_sheet_shows_pairs_and_says_that_it_is_private(folder, monkeypatch):
    drawn, texts = module.ImageDraw.Draw, []

    class Noted:
        def __init__(self, picture):
            self.draw = drawn(picture)

        def text(self, place, text, *others):
            texts.append(text)
            self.draw.text(place, text, *others)

    monkeypatch.setattr(module.ImageDraw, "Draw", Noted)
    diagnose(options(folder))
    assert texts[0] == "private: shows training images; outside the guarantee"
    picture = np.asarray(Image.open(folder / "private_nearest.png"))
    train = read_part(folder / "dataset.safetensors", "train")[:]
    tiles = {np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.NEAREST)).tobytes() for image in train}
    corners = [(top, left) for top in range(picture.shape[0] - 95) for left in (6,)]
    shown = [top for top, left in corners if picture[top : top + 96, left : left + 96].tobytes() in tiles]
    assert len(shown) == 4 and shown[1] - shown[0] == shown[3] - shown[2] == 102  # above and below, in two spaces
    for top, below in (shown[:2], shown[2:]):  # synthetic images are copies, so that both are the same
        assert np.array_equal(picture[top : top + 96, :108], picture[below : below + 96, :108])


def test_a_sheet_without_a_private_name_is_refused_before_anything_is_computed(folder):
    with pytest.raises(UserError, match="let its name begin with private, as private_nearest.png"):
        diagnose(options(folder, sheet=folder / "nearest.png", archive=folder / "none"))
    assert not (folder / "nearest.png").exists()


def test_too_few_images_are_refused(folder):
    write_archive(folder / "one.npz", {"images": images(1, 0, 32), "labels": np.zeros(1, int)})
    with pytest.raises(UserError, match="synthetic images = 1: must be at least 2"):
        diagnose(options(folder, synthetic=folder / "one.npz"))
    write_dataset(folder / "dataset.safetensors", {"train": (images(9, 0, 32), np.zeros(9, int))})
    with pytest.raises(UserError, match="has no test images, which diagnose needs: .* hold some out"):
        diagnose(options(folder))
    assert not (folder / "diagnostics.json").exists()
