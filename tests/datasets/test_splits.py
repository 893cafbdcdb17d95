import numpy as np
import pytest

from dpsapf.datasets.images import LabelledImages
from dpsapf.datasets.splits import class_quotas, split, stratified_holdout
from dpsapf.support.errors import UserError


def numbered(sizes, start=0):
    """Images whose one pixel pair is their number, so that they can be followed through a split."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(start, start + len(labels))
    return LabelledImages(np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8)[:, None, :, None], labels)


def numbers(part):
    high, low = part.images[:, 0, :, 0].astype(int).T
    return high * 256 + low


def test_splits_are_disjoint_and_complete(make_entry):
    pool = numbered([300, 200])
    parts = split({"train": pool}, make_entry(validation=50, test=100))
    found = [numbers(part) for part in parts.values()]
    assert [len(part) for part in found] == [350, 50, 100]
    assert sorted(np.concatenate(found)) == list(range(500))


def test_labels_stay_with_their_images(make_entry):
    pool = numbered([300, 200])
    for part in split({"train": pool}, make_entry(validation=50, test=100)).values():
        assert np.array_equal(part.labels, pool.labels[numbers(part)])


def test_every_split_keeps_the_class_shares(make_entry):
    parts = split({"train": numbered([300, 200])}, make_entry(validation=50, test=100))
    assert [np.bincount(part.labels).tolist() for part in parts.values()] == [[210, 140], [30, 20], [60, 40]]


def test_the_seed_alone_decides(make_entry):
    pool = {"train": numbered([60, 40])}
    first, again, other = (split(pool, make_entry(validation=10, test=20, split_seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(numbers(first["test"]), numbers(again["test"]))
    assert set(numbers(first["test"])) != set(numbers(other["test"]))


def test_test_images_do_not_depend_on_the_validation_count(make_entry):
    pool = {"train": numbered([60, 40])}
    few, many = (split(pool, make_entry(validation=count, test=20)) for count in (5, 30))
    assert np.array_equal(numbers(few["test"]), numbers(many["test"]))


def test_held_out_images_are_spread_over_the_pool(make_entry):
    test = numbers(split({"train": numbered([1000, 1000])}, make_entry(validation=2, test=500))["test"])
    assert abs(test.mean() - 1000) < 100  # standard error of the mean: 22; taking the first or last would give 500 off


def test_a_source_s_own_splits_are_kept(make_entry):
    parts = {"train": numbered([6, 4]), "validation": numbered([2, 2], 10), "test": numbered([1, 1], 14)}
    result = split(parts, make_entry(validation=0, test=0))
    assert all(result[name] is parts[name] for name in parts)


def test_missing_validation_comes_out_of_train(make_entry):
    parts = {"train": numbered([60, 40]), "test": numbered([1, 1], 100)}
    result = split(parts, make_entry(validation=10, test=0))
    assert result["test"] is parts["test"]
    assert np.bincount(result["validation"].labels).tolist() == [6, 4]
    assert sorted(np.concatenate([numbers(result["train"]), numbers(result["validation"])])) == list(range(100))


def test_a_count_beside_an_own_split_is_refused(make_entry):
    parts = {"train": numbered([6, 4]), "test": numbered([1, 1], 10)}
    with pytest.raises(UserError, match="test = 4: must be 0"):
        split(parts, make_entry(validation=2, test=4))


@pytest.mark.parametrize(("validation", "test", "named"), [(0, 4, "validation = 0"), (2, 1, "test = 1"), (2, 99, "test = 99")])
def test_impossible_counts_are_refused(make_entry, validation, test, named):
    with pytest.raises(UserError, match=named):
        split({"train": numbered([60, 40])}, make_entry(validation=validation, test=test))


def test_holdout_of_everything_and_nothing():
    labels = np.array([0, 1, 1])
    kept, held = stratified_holdout(labels, 3, np.random.default_rng(0))
    assert (len(kept), sorted(held)) == (0, [0, 1, 2])
    kept, held = stratified_holdout(labels, 0, np.random.default_rng(0))
    assert (sorted(kept), len(held)) == ([0, 1, 2], 0)


def test_quotas_by_hand():
    assert class_quotas(np.array([5, 3, 2]), 4).tolist() == [2, 1, 1]  # 2.0, 1.2, 0.8
    assert class_quotas(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]  # ties: lower label first


def test_quotas_sum_up_and_are_rounded_shares():
    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(1, 50, generator.integers(2, 9))
        count = int(generator.integers(0, sizes.sum() + 1))
        quotas = class_quotas(sizes, count)
        assert quotas.sum() == count
        assert (np.abs(quotas - sizes * count / sizes.sum()) < 1).all()
        assert (quotas <= sizes).all()
