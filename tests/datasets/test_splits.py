import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpsapf.datasets.splits import counts_to_hold_out, placed, unit_hashes
from dpsapf.experiment.columns import SPLITS
from dpsapf.support.errors import UserError


def messages(count):
    """Images, each told by its number."""
    return [number.to_bytes(2, "big") for number in range(count)]


def told(**sizes):
    """The split of each image, as a source tells it."""
    return np.repeat(list(sizes), list(sizes.values()))


def split(images, entry, splits=None):
    """Positions in each split."""
    splits = told(train=len(images)) if splits is None else splits
    places = placed(splits, counts_to_hold_out(splits, entry), unit_hashes(images, entry.split_seed))
    assert places.dtype == np.uint8 and len(places) == len(images)
    return {name: np.flatnonzero(places == place) for place, name in enumerate(SPLITS)}


def test_splits_are_disjoint_and_complete(make_entry):
    parts = split(messages(500), make_entry(validation=50, test=100))
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(500))


def test_counts_are_binomial_around_what_is_asked_for(make_entry):
    entries = [make_entry(validation=200, test=500, split_seed=seed) for seed in range(60)]
    found = np.array([[len(part) for part in split(messages(2000), entry).values()] for entry in entries])
    for sizes, share in zip(found.T, (0.65, 0.1, 0.25), strict=True):
        law = stats.binom(60 * 2000, share)
        assert min(law.cdf(sizes.sum()), law.sf(sizes.sum())) > 1e-4
        assert 0.5 < sizes.var() / (2000 * share * (1 - share)) < 1.7, "chi-square over 59: 0.58 to 1.53 in 998 of 1,000"


def same(left, right):
    return all(np.array_equal(left[name], right[name]) for name in SPLITS)


def test_the_seed_alone_decides(make_entry):
    first, again, other = (split(messages(100), make_entry(validation=10, test=20, split_seed=seed)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)


@settings(max_examples=50, deadline=None)
@given(taken=st.sets(st.integers(0, 99), max_size=30), order=st.randoms())
def test_no_image_moves_another(taken, order):
    """Whatever images are left out, and in whatever order they come, the others' hashes stay, and equal images meet."""
    pool, rest = messages(100), [number for number in range(100) if number not in taken]
    order.shuffle(rest)
    assert np.array_equal(unit_hashes([pool[number] for number in rest], 3), unit_hashes(pool, 3)[rest])


def test_a_zeroed_image_leaves_every_other_where_it_was(make_entry):
    """Zero-out keeps N, and so the thresholds: the guarantee for the training images is one for the source."""
    pool, entry = messages(100), make_entry(validation=10, test=20)
    before = split(pool, entry)
    for zeroed in range(100):
        after = split([*pool[:zeroed], bytes(2), *pool[zeroed + 1 :]], entry)
        assert all(set(before[name]) - {zeroed} == set(after[name]) - {zeroed} for name in SPLITS)


def test_test_images_do_not_depend_on_the_validation_count(make_entry):
    few, many = (split(messages(100), make_entry(validation=count, test=20)) for count in (5, 30))
    assert np.array_equal(few["test"], many["test"])


def test_what_is_held_out_is_spread_over_the_source(make_entry):
    found = split(messages(2000), make_entry(validation=2, test=500, split_seed=1))["test"]
    assert stats.kstest(found / 2000, "uniform").pvalue > 0.01


def test_equal_images_stay_together(make_entry):
    parts = split(messages(100) * 2, make_entry(validation=20, test=40))
    assert sum(len(set(part % 100)) for part in parts.values()) == 100


def test_a_user_s_images_stay_together(make_entry):
    users = np.array([f"person {number % 25}" for number in range(200)])
    parts = split([user.encode() for user in users], make_entry(validation=40, test=60))
    assert sum(len(set(users[part])) for part in parts.values()) == 25


def test_a_source_s_own_splits_are_kept(make_entry):
    splits = np.array(["test", "train", "validation", "train", "test"])
    parts = split(messages(5), make_entry(validation=0, test=0), splits)
    assert {name: part.tolist() for name, part in parts.items()} == {"train": [1, 3], "validation": [2], "test": [0, 4]}
    assert counts_to_hold_out(splits, make_entry(validation=0, test=0)) == {}
    assert placed(splits, {}, None).tolist() == [2, 0, 1, 0, 2], "no hash is needed"


def test_missing_validation_comes_out_of_train(make_entry):
    parts = split(messages(102), make_entry(validation=10, test=0), told(test=2, train=100))
    assert parts["test"].tolist() == [0, 1] and 2 <= len(parts["validation"]) <= 25
    assert sorted(np.concatenate([parts["train"], parts["validation"]])) == list(range(2, 102))
    assert counts_to_hold_out(told(test=2, train=100), make_entry(validation=10, test=0)) == {"validation": 10}


def test_shares_are_of_the_images_that_are_to_be_split(make_entry):
    parts = split(messages(2000), make_entry(validation=500, test=0), told(train=1000, test=1000))
    assert 420 < len(parts["validation"]) < 580, "500 of 1,000, five standard deviations"


def test_a_count_beside_an_own_split_is_refused(make_entry):
    with pytest.raises(UserError, match="test = 4: must be 0"):
        counts_to_hold_out(told(train=10, test=2), make_entry(validation=2, test=4))


@pytest.mark.parametrize(
    ("validation", "test", "named"),
    [(100, 0, "validation = 100"), (2, 100, "test = 100"), (50, 50, "leaves none")],
)
def test_impossible_counts_are_refused(make_entry, validation, test, named):
    with pytest.raises(UserError, match=named):
        counts_to_hold_out(told(train=100), make_entry(validation=validation, test=test))


@pytest.mark.parametrize(("validation", "test"), [(0, 0), (20, 0), (0, 20)])
def test_nothing_is_held_out_where_a_count_is_0(make_entry, validation, test):
    parts = split(messages(100), make_entry(validation=validation, test=test))
    assert {name for name, part in parts.items() if len(part)} == {
        "train",
        *(name for name, count in (("validation", validation), ("test", test)) if count),
    }


def test_an_empty_split_is_refused(make_entry):
    with pytest.raises(UserError, match="no image fell into this split"):
        split(messages(4), make_entry(validation=1, test=1, split_seed=0))


def test_a_hash_is_the_head_of_hmac_sha_256_keyed_by_the_seed():
    found = [b"ann", b"bob", b"ann"]
    digests = [hmac.new(b"dpsapf split 7", message, "sha256").digest() for message in found]
    assert unit_hashes(found, 7).tolist() == [(int.from_bytes(digest[:8], "big") >> 11) / 2**53 for digest in digests]


def test_hashes_are_uniform():
    hashes = unit_hashes(messages(4000), 0)
    assert hashes.dtype == np.float64 and hashes.min() >= 0 and hashes.max() < 1
    assert stats.kstest(hashes, "uniform").pvalue > 0.01
