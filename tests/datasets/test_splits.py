import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsapf.datasets.images import LabelledImages
from dpsapf.datasets.splits import split, unit_hashes
from dpsapf.support.errors import UserError


def numbered(sizes, start=0, users=None):
    """Images whose one pixel pair is their number, so that they can be followed through a split."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(start, start + len(labels))
    images = np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8)[:, None, :, None]
    return LabelledImages(images, labels, users)


def numbers(part):
    high, low = part.images[:, 0, :, 0].astype(int).T
    return high * 256 + low


def places(parts):
    """Which split each number is in."""
    return {number: name for name, part in parts.items() for number in numbers(part)}


def test_splits_are_disjoint_and_complete(make_entry):
    parts = split({"train": numbered([300, 200])}, make_entry(validation=50, test=100))
    found = [numbers(part) for part in parts.values()]
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(np.concatenate(found)) == list(range(500))


def test_labels_stay_with_their_images(make_entry):
    pool = numbered([300, 200])
    for part in split({"train": pool}, make_entry(validation=50, test=100)).values():
        assert np.array_equal(part.labels, pool.labels[numbers(part)])


def test_counts_are_binomial_around_what_is_asked_for(make_entry):
    pool = {"train": numbered([1000, 1000])}
    found = np.array(
        [
            [len(part.labels) for part in split(pool, make_entry(validation=200, test=500, split_seed=seed)).values()]
            for seed in range(60)
        ]
    )
    for sizes, share in zip(found.T, (0.65, 0.1, 0.25), strict=True):
        law = stats.binom(60 * 2000, share)
        assert min(law.cdf(sizes.sum()), law.sf(sizes.sum())) > 1e-4
        assert 0.5 < sizes.var() / (2000 * share * (1 - share)) < 1.7, "chi-square over 59: 0.58 to 1.53 in 998 of 1,000"


def test_the_seed_alone_decides(make_entry):
    pool = {"train": numbered([60, 40])}
    first, again, other = (split(pool, make_entry(validation=10, test=20, split_seed=seed)) for seed in (1, 1, 2))
    assert places(first) == places(again) != places(other)


@settings(max_examples=50, deadline=None)
@given(taken=st.sets(st.integers(0, 99), max_size=30), order=st.randoms())
def test_no_image_moves_another(taken, order):
    """Whatever images are left out, and in whatever order they come, the others' hashes stay, and equal images meet."""
    pool, rest = numbered([60, 40]), [number for number in range(100) if number not in taken]
    order.shuffle(rest)
    assert np.array_equal(unit_hashes(pool.take(np.array(rest)), 3), unit_hashes(pool, 3)[rest])


def test_a_zeroed_image_leaves_every_other_where_it_was(make_entry):
    """Zero-out keeps N, and so the thresholds: the guarantee for the training images is one for the source."""
    pool, entry = numbered([60, 40]), make_entry(validation=10, test=20)
    before = places(split({"train": pool}, entry))
    pool.images[17] = 255
    after = places(split({"train": pool}, entry))
    assert {number: after[number] for number in before if number != 17} == {n: p for n, p in before.items() if n != 17}


def test_test_images_do_not_depend_on_the_validation_count(make_entry):
    pool = {"train": numbered([60, 40])}
    few, many = (split(pool, make_entry(validation=count, test=20)) for count in (5, 30))
    assert np.array_equal(numbers(few["test"]), numbers(many["test"]))


def test_what_is_split_stands_in_no_order_of_the_source(make_entry):
    part = split({"train": numbered([1000, 1000])}, make_entry(validation=2, test=500, split_seed=1))["test"]
    assert abs(stats.spearmanr(numbers(part), np.arange(len(part.labels))).statistic) < 0.2  # 4.5 standard errors
    assert abs(numbers(part).mean() - 1000) < 120


def test_equal_images_stay_together(make_entry):
    pool = numbered([60, 40])
    twice = LabelledImages(np.concatenate([pool.images, pool.images]), np.tile(pool.labels, 2))
    parts = split({"train": twice}, make_entry(validation=20, test=40))
    assert sum(len(set(numbers(part))) for part in parts.values()) == 100


def test_a_user_s_images_stay_together(make_entry):
    users = np.array([f"person {number % 25}" for number in range(200)])
    parts = split({"train": numbered([120, 80], users=users)}, make_entry(validation=40, test=60))
    assert sum(len(set(part.users)) for part in parts.values()) == 25
    for part in parts.values():
        assert np.array_equal(part.users, users[numbers(part)])


def test_a_source_s_own_splits_are_kept(make_entry):
    parts = {"train": numbered([6, 4]), "validation": numbered([2, 2], 10), "test": numbered([1, 1], 14)}
    result = split(parts, make_entry(validation=0, test=0))
    assert all(np.array_equal(numbers(result[name]), numbers(parts[name])) for name in parts)


def test_missing_validation_comes_out_of_train(make_entry):
    parts = {"train": numbered([60, 40]), "test": numbered([1, 1], 100)}
    result = split(parts, make_entry(validation=10, test=0))
    assert result["test"] is parts["test"] and 2 <= len(result["validation"].labels) <= 25
    assert sorted(np.concatenate([numbers(result["train"]), numbers(result["validation"])])) == list(range(100))


def test_a_count_beside_an_own_split_is_refused(make_entry):
    parts = {"train": numbered([6, 4]), "test": numbered([1, 1], 10)}
    with pytest.raises(UserError, match="test = 4: must be 0"):
        split(parts, make_entry(validation=2, test=4))


@pytest.mark.parametrize(
    ("validation", "test", "named"),
    [(0, 4, "validation = 0"), (2, 0, "test = 0"), (2, 100, "test = 100"), (50, 50, "leaves none")],
)
def test_impossible_counts_are_refused(make_entry, validation, test, named):
    with pytest.raises(UserError, match=named):
        split({"train": numbered([60, 40])}, make_entry(validation=validation, test=test))


def test_an_empty_split_is_refused(make_entry):
    with pytest.raises(UserError, match="no image fell into this split"):
        split({"train": numbered([2, 2])}, make_entry(validation=1, test=1, split_seed=0))


def test_a_hash_is_the_head_of_hmac_sha_256_keyed_by_the_seed():
    pool = numbered([2, 1], users=np.array(["ann", "bob", "ann"]))
    for users, messages in ((None, [image.tobytes() for image in pool.images]), (pool.users, [b"ann", b"bob", b"ann"])):
        digests = [hmac.new(b"dpsapf split 7", message, "sha256").digest() for message in messages]
        expected = [(int.from_bytes(digest[:8], "big") >> 11) / 2**53 for digest in digests]
        assert unit_hashes(LabelledImages(pool.images, pool.labels, users), 7).tolist() == expected


def test_a_user_s_images_stay_in_the_order_of_the_source(make_entry):
    users = np.array([f"person {number % 12}" for number in range(600)])
    for part in split({"train": numbered([300, 300], users=users)}, make_entry(validation=200, test=200, split_seed=1)).values():
        for user in set(part.users):
            assert (np.diff(numbers(part)[part.users == user]) > 0).all()


def test_hashes_are_uniform():
    hashes = unit_hashes(numbered([2000, 2000]), 0)
    assert hashes.dtype == np.float64 and hashes.min() >= 0 and hashes.max() < 1
    assert stats.kstest(hashes, "uniform").pvalue > 0.01
