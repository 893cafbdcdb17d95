"""Precision, recall, density and coverage: the loop in float64, the libraries on the same features, ties and far-off features."""

import itertools

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.spatial.distance import cdist
from torch_fidelity.metric_prc import calculate_precision_recall_full

from dpsapf.evaluation import neighbours as module
from dpsapf.evaluation.neighbours import manifold_scores, nearest_distances, radii
from dpsapf.support.errors import UserError
from tests.evaluation.test_gaussians import features, in_file


def distances(first, second):
    """In float64, from differences, rounded once to fp32."""
    return cdist(first.astype(np.float64), second.astype(np.float64)).astype(np.float32)


def by_loop(real, synthetic, k):
    """Precision, recall (closed balls), density and coverage (open balls), as their papers write them."""
    between = distances(real, synthetic)
    own, other = (
        np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(distances(x, x))]) for x in (real, synthetic)
    )
    pairs = range(len(synthetic)), range(len(real))
    return (
        np.mean([any(between[i, j] <= own[i] for i in pairs[1]) for j in pairs[0]]),
        np.mean([any(between[i, j] <= other[j] for j in pairs[0]) for i in pairs[1]]),
        sum(between[i, j] < own[i] for j in pairs[0] for i in pairs[1]) / (k * len(synthetic)),
        np.mean([any(between[i, j] < own[i] for j in pairs[0]) for i in pairs[1]]),
    )


def scores(real, synthetic, k=5):
    own = radii(real, k, "cpu")
    found = manifold_scores(real, synthetic, own, radii(synthetic, k, "cpu"), own, k, "cpu")
    return found.precision, found.recall, found.density, found.coverage


CASES = {
    "near": lambda: (features(80, 3), features(60, 3, 0.5, 4)),
    "many dimensions": lambda: (features(80, 200), features(60, 200, 0.05, 4)),
    "copies of real images": lambda: (features(80, 6), features(80, 6)[::2].copy()),
    "every image twice": lambda: (np.tile(features(40, 6), (2, 1)), np.tile(features(30, 6), (2, 1))),
    "whole numbers, so that most distances are ties": lambda: (np.round(features(80, 3)), np.round(features(60, 3, 0, 4))),
    "one image only": lambda: (features(80, 6), np.repeat(features(1, 6), 30, axis=0)),
    "far from zero": lambda: (features(80, 6) + np.float32(1000), features(60, 6, 0.5, 4) + np.float32(1000)),
    "two groups far apart": lambda: (groups(80, 0), groups(60, 4)),
    "at the origin": lambda: (np.zeros((20, 3), np.float32), np.zeros((20, 3), np.float32)),
}


def groups(count, seed):
    """Centring helps neither group: norms of 30,000 against distances of 1, nearly all pairs are computed again."""
    return features(count, 6, seed=seed) + np.float32(30_000) * np.where(np.arange(count) % 2, 1, -1)[:, None].astype(np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 5])
def test_scores_are_those_of_the_loop_exactly(name, k):
    real, synthetic = CASES[name]()
    assert scores(real, synthetic, k) == pytest.approx(by_loop(real, synthetic, k), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [9, 64])
def test_blocks_do_not_change_a_bit(monkeypatch, name, block):
    real, synthetic = CASES[name]()
    whole = nearest_distances(real, 5, "cpu"), scores(real, synthetic)
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "PAIRS", 50)
    assert (nearest_distances(real, 5, "cpu") == whole[0]).all() and scores(real, synthetic) == whole[1]


@pytest.mark.parametrize("name", CASES)
def test_nearest_distances_are_sorted_rows_of_all_distances(name):
    real, _ = CASES[name]()
    expected = distances(real, real)
    np.fill_diagonal(expected, np.inf)
    assert (nearest_distances(real, 6, "cpu") == np.sort(expected, 1)[:, :6]).all()


def test_features_may_lie_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    real, synthetic = CASES["near"]()
    (tmp_path / "other").mkdir()
    assert scores(in_file(real, tmp_path), in_file(synthetic, tmp_path / "other")) == scores(real, synthetic)


@pytest.mark.parametrize("dimensions", [2, 16, 128])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1])
def test_prdc_and_torch_fidelity_agree(dimensions, shift):
    """No ties here, and float64 for both: nothing may differ."""
    real, synthetic = features(300, dimensions), features(250, dimensions, shift, 1)
    found = scores(real, synthetic)
    known = compute_prdc(real.astype(np.float64), synthetic.astype(np.float64), 5)
    assert found == pytest.approx([known[name] for name in ("precision", "recall", "density", "coverage")], rel=1e-12)
    pair = calculate_precision_recall_full(torch.from_numpy(synthetic).double(), torch.from_numpy(real).double(), 5)
    assert found[:2] == pytest.approx(pair, rel=1e-6)  # it counts in fp32
    assert 0 < found[0] < 1 or 0 < found[1] < 1


def test_a_collapsed_generator_has_precision_without_recall_and_one_that_is_too_wide_the_reverse():
    real = features(200, 4)
    collapsed = real[:1] + 1e-3 * features(200, 4, seed=5)
    wide = real.mean(0) + 4 * (features(200, 4, seed=6) - real.mean(0))
    of_collapsed, of_wide = scores(real, collapsed), scores(real, wide)
    assert of_collapsed[0] > 0.95 and of_collapsed[1] < 0.05 and of_collapsed[3] < 0.1
    assert of_wide[0] < 0.5 and of_wide[1] > 0.95


def test_sets_far_apart_score_nothing_and_a_set_with_itself_all():
    assert scores(features(), features(shift=50.0)) == (0, 0, 0, 0)
    assert scores(features(), features()) == (1, 1, 1, 1)


def test_all_scores_fall_with_noise():
    real, noise = features(), np.random.default_rng(5).normal(size=(500, 12)).astype(np.float32)
    values = np.array([scores(real, real[::-1] + level * noise) for level in (0.01, 0.3, 1, 3)])
    assert (np.diff(values[:, [0, 2, 3]], axis=0) <= 0).all() and (values[0] > 0.9).all() and values[-1][0] < 0.5


def test_single_scores_are_those_of_the_one_pass_with_radii_of_their_own():
    real, synthetic = CASES["near"]()
    three, four, five = radii(real, 3, "cpu"), radii(synthetic, 4, "cpu"), radii(real, 5, "cpu")
    found = manifold_scores(real, synthetic, three, four, five, 5, "cpu")
    assert found.precision == by_loop(real, synthetic, 3)[0]
    assert found.recall == by_loop(real, synthetic, 4)[1]
    assert found.density == pytest.approx(by_loop(real, synthetic, 5)[2])
    assert found.coverage == by_loop(real, synthetic, 5)[3]


def test_a_point_may_count_as_its_own_first_neighbour():
    real = features(50, 3)
    assert (radii(real, 4, "cpu", itself=True) == radii(real, 3, "cpu")).all()
    assert (radii(real, 1, "cpu", itself=True) == 0).all() and len(radii(real, 1, "cpu", itself=True)) == 50


def test_more_neighbours_make_larger_balls():
    assert (np.diff(nearest_distances(features(100, 3), 9, "cpu"), axis=1) > 0).all()


@pytest.mark.parametrize(("k", "itself"), [(0, False), (50, False), (51, True)])
def test_too_few_images_are_an_error(k, itself):
    with pytest.raises(UserError, match="1 to 49"):
        radii(features(50), k, "cpu", itself)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_told(wrong):
    """Comparisons with them are false: they would pass for images far off."""
    real, synthetic = CASES["near"]()
    known = radii(real, 5, "cpu")
    synthetic[17, 2] = wrong
    for call in (lambda: radii(synthetic, 5, "cpu"), lambda: manifold_scores(real, synthetic, known, known, known, 5, "cpu")):
        with pytest.raises(UserError, match="NaN or infinity"):
            call()


def test_products_are_fp32_whatever_the_process_does_otherwise(monkeypatch):
    """A process may multiply in TF32 or bf16; the bound on the error would not hold."""
    seen, multiply = [], torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda *given, **named: seen.append(torch.get_float32_matmul_precision()) or multiply(*given, **named)
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        scores(features(50), features(50))
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dimensions", [2, 50, 2048])
@pytest.mark.parametrize("offset", [0, 100])
def test_the_error_of_fp32_squares_is_within_its_bound(dimensions, offset):
    generator = np.random.default_rng(0)
    first, second = ((generator.gamma(0.5, size=(200, dimensions)) + offset).astype(np.float32) for _ in range(2))
    second[:50] = first[:50]
    left, right = (module._Points(some, module._mean(first), "cpu")[slice(0, 200)] for some in (first, second))
    exact = cdist(first.astype(np.float64), second.astype(np.float64), "sqeuclidean")
    error = np.abs(module._squares(left, right).numpy() - exact)
    bound = module._relative_error(dimensions) * (left.norms[:, None] + right.norms).numpy()
    assert (error <= bound).all() and error.max() > 0.001 * bound.max()


@pytest.mark.parametrize("offset", [0, 1000])
def test_few_pairs_are_computed_again(monkeypatch, offset):
    """The second step must not become the first: features spread in few dimensions, as a network's, far from 0 or not."""
    real, synthetic = (some + np.float32(offset) for some in (features(1000, 256), features(800, 256, 0.05, 1)))
    counts, exact = [], module._exact
    monkeypatch.setattr(module, "_exact", lambda *given: counts.append(len(given[1])) or exact(*given))
    scores(real, synthetic)
    radius_pairs, pairs = counts[0] + counts[1], sum(counts[2:])
    assert radius_pairs < 1.2 * 5 * 1800 and pairs < 0.01 * 1000 * 800


def test_orders_of_images_do_not_matter():
    real, synthetic = CASES["near"]()
    assert scores(real[::-1].copy(), synthetic) == scores(real, synthetic) == scores(real, synthetic[::-1].copy())


def test_cases_are_different():
    found = {name: scores(*make()) for name, make in CASES.items()}
    assert all(found[one] != found[other] for one, other in itertools.combinations(found, 2))
