import numpy as np
import pytest
from scipy import linalg

from dpsapf.evaluation import fidelity
from dpsapf.evaluation.fidelity import frechet, kernel, precision_recall


def features(count=300, dimension=6, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, (count, dimension))


def test_frechet_of_a_set_with_itself_is_zero():
    assert frechet(features(), features()) == pytest.approx(0, abs=1e-6)  # a matrix square root in float64


def test_frechet_is_symmetric_and_ignores_order():
    first, second = features(), features(shift=0.5, seed=1)
    assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-9)
    assert frechet(first, second[::-1]) == pytest.approx(frechet(first, second), rel=1e-9)


def test_frechet_of_gaussians_matches_the_closed_form():
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) with diagonal covariances."""
    scales = np.array([1.0, 2.0, 0.5])
    first = features(200_000, 3)
    second = features(200_000, 3, seed=1) * scales + 1.0
    expected = 3 * 1.0 + ((1 - scales) ** 2).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=0.02)  # sampling error of 200,000 draws


def test_frechet_matches_scipy():
    first, second = features(), features(shift=0.3, seed=2)
    means = [value.mean(0) for value in (first, second)]
    covariances = [np.cov(value.T) for value in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-8)


def test_kernel_distance_is_near_zero_for_one_distribution_and_grows_with_a_shift():
    same = kernel(features(seed=0), features(seed=1), 10, 200, 0)
    near = kernel(features(seed=0), features(seed=1, shift=0.5), 10, 200, 0)
    far = kernel(features(seed=0), features(seed=1, shift=1.0), 10, 200, 0)
    assert abs(same) < 0.05 < near < far


def naive_mmd(first, second):
    """Unbiased squared MMD with the cubic kernel, by loops."""
    size, dimension = first.shape

    def k(a, b):
        return (a @ b / dimension + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (first, second) for i in range(size) for j in range(size) if i != j)
    between = sum(k(a, b) for a in first for b in second)
    return within / (size * (size - 1)) - 2 * between / size**2


def test_kernel_distance_matches_the_loop():
    first, second = features(20), features(20, shift=0.4, seed=3)
    assert kernel(first, second, 1, 20, 0) == pytest.approx(naive_mmd(first, second), rel=1e-9)


def test_kernel_distance_depends_on_its_seed_only_and_leaves_the_global_state():
    values = []
    for state in (0, 1):
        np.random.seed(state)  # noqa: NPY002
        values.append(kernel(features(), features(seed=1, shift=0.2), 3, 100, 7))
        after = np.random.random()  # noqa: NPY002
        np.random.seed(state)  # noqa: NPY002
        assert after == np.random.random()  # noqa: NPY002
    assert values[0] == values[1]
    assert kernel(features(), features(seed=1, shift=0.2), 3, 100, 8) != values[0]


def naive_precision(real, synthetic, k):
    def radius(index):
        return sorted(np.linalg.norm(real - real[index], axis=1))[k]

    radii = [radius(index) for index in range(len(real))]
    inside = [any(np.linalg.norm(point - real[i]) <= radii[i] for i in range(len(real))) for point in synthetic]
    return np.mean(inside)


def test_precision_and_recall_match_the_loop():
    real, synthetic = features(40, 3), features(25, 3, shift=0.8, seed=4)
    precision, recall = precision_recall(real, synthetic, 3)
    assert precision == pytest.approx(naive_precision(real, synthetic, 3))
    assert recall == pytest.approx(naive_precision(synthetic, real, 3))
    assert 0 < precision < 1


def test_chunks_do_not_change_precision_and_recall(monkeypatch):
    real, synthetic = features(100, 3), features(60, 3, shift=0.8, seed=4)
    whole = precision_recall(real, synthetic, 3)
    monkeypatch.setattr(fidelity, "CHUNK", 7)
    assert precision_recall(real, synthetic, 3) == whole


def test_more_neighbours_make_larger_balls():
    real, synthetic = features(100, 3), features(60, 3, shift=0.8, seed=4)
    few, many = precision_recall(real, synthetic, 1), precision_recall(real, synthetic, 9)
    assert few[0] < many[0] and few[1] < many[1]


def eigenvalue_frechet(first, second):
    """The distance through symmetric eigenvalues only: tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2)."""
    one, two = np.cov(first.T), np.cov(second.T)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    return ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(one + two) - 2 * trace


@pytest.mark.filterwarnings("error::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("dead", [(), (0,), (1, 3, 4)])
def test_frechet_of_constant_features_matches_eigenvalues_without_a_warning(dead):
    mix = np.random.default_rng(8).normal(size=(6, 6))  # features that depend on each other
    first, second = features() @ mix, features(shift=0.3, seed=2) @ mix.T
    first[:, dead], second[:, dead] = 0.0, 0.0
    assert frechet(first, second) == pytest.approx(eigenvalue_frechet(first, second), abs=1e-5)


def test_frechet_of_identical_images_is_finite():
    """A generator that makes one image: its covariance is 0, the distance |m1 - m2|^2 + tr(S1)."""
    real, one = features(), np.repeat(features(1, seed=9), 50, axis=0)
    expected = ((real.mean(0) - one[0]) ** 2).sum() + np.trace(np.cov(real.T))
    assert frechet(real, one) == pytest.approx(expected, rel=1e-6)
    assert precision_recall(real, one, 5)[1] == 0


def test_precision_and_recall_at_the_extremes():
    assert precision_recall(features(), features(), 5) == (1.0, 1.0)
    assert precision_recall(features(), features(shift=50.0), 5) == (0.0, 0.0)


def test_a_collapsed_generator_has_precision_without_recall():
    collapsed = np.repeat(features(1), 50, axis=0) + features(50, seed=5) * 1e-3
    precision, recall = precision_recall(features(), collapsed, 5)
    assert precision > 0.9 and recall < 0.1
