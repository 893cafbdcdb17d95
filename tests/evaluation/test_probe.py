import numpy as np
import pytest

from dpsapf.evaluation import probe as module
from dpsapf.evaluation.probe import fit_probe, probe_predictions


def features(count=90, classes=3, seed=0, spread=1.0):
    """Clusters that overlap, features of very different scales; float64 [N, 5], int64 [N]."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(9).normal(size=(classes, 5))
    points = (centres[labels] + spread * generator.normal(size=(count, 5))) * [1, 10, 0.1, 1000, 1] + [0, 5, 0, 700, -3]
    return points, labels


def closed_form(train, labels, test, ridge):
    """Indicators' least squares with the ridge written as rows of data: no matrix of sklearn's, no normal equations."""
    classes = np.unique(labels)
    mean, deviation = train.mean(0), train.std(0)
    standard, count = (train - mean) / deviation, len(train)
    design = np.vstack([np.c_[standard, np.ones(count)], np.c_[np.sqrt(ridge * count) * np.eye(5), np.zeros(5)]])
    targets = np.vstack([labels[:, None] == classes, np.zeros((5, len(classes)))])
    weights = np.linalg.lstsq(design, targets, rcond=None)[0]
    return np.c_[(test - mean) / deviation, np.ones(len(test))] @ weights


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_predictions_are_those_of_the_closed_form(classes, ridge):
    (train, labels), (test, _) = features(classes=classes), features(400, classes, seed=1)
    scores, found = closed_form(train, labels, test, ridge), fit_probe(train, labels, ridge)
    assert np.array_equal(found.predict(test), scores.argmax(1))
    indicators = (found.decision_function(test) + 1) / 2  # sklearn regresses -1 and 1
    assert indicators == pytest.approx(scores[:, 1] if classes == 2 else scores, abs=1e-9)


def test_a_stronger_ridge_shrinks_the_weights():
    train, labels = features()
    weak, strong = (np.abs(fit_probe(train, labels, ridge)[-1].coef_).sum() for ridge in (0.1, 100))
    assert strong < 0.02 * weak


def test_the_ridge_is_per_image():
    """Each image twice is the same problem."""
    (train, labels), (test, _) = features(), features(50, seed=1)
    once, twice = fit_probe(train, labels, 0.1), fit_probe(np.tile(train, (2, 1)), np.tile(labels, 2), 0.1)
    assert once.decision_function(test) == pytest.approx(twice.decision_function(test), abs=1e-9)


def test_two_fits_are_equal_to_the_bit_whatever_the_global_state():
    (train, labels), (test, _) = features(), features(50, seed=1)
    first = fit_probe(train, labels, 0.1).decision_function(test)
    np.random.seed(3)  # noqa: NPY002 - a global state that must not matter
    assert np.array_equal(first, fit_probe(train, labels, 0.1).decision_function(test))


def test_the_order_of_the_rows_does_not_matter():
    (train, labels), (test, _) = features(), features(50, seed=1)
    order = np.random.default_rng(2).permutation(len(labels))
    first, second = fit_probe(train, labels, 0.1), fit_probe(train[order], labels[order], 0.1)
    assert first.decision_function(test) == pytest.approx(second.decision_function(test), abs=1e-9)
    assert np.array_equal(first.predict(test), second.predict(test))


def test_renamed_classes_are_predicted_under_their_new_names():
    (train, labels), (test, _) = features(), features(50, seed=1)
    names = np.array([2, 0, 1])
    assert np.array_equal(names[fit_probe(train, labels, 0.1).predict(test)], fit_probe(train, names[labels], 0.1).predict(test))


def test_an_absent_class_is_never_predicted():
    (train, labels), (test, _) = features(classes=4), features(200, 4, seed=1)
    kept = labels != 2
    assert set(fit_probe(train[kept], labels[kept], 0.1).predict(test)) == {0, 1, 3}


@pytest.mark.parametrize("label", [0, 3])
def test_a_single_class_is_always_predicted(label):
    train, _ = features()
    assert set(fit_probe(train, np.full(len(train), label), 0.1).predict(train)) == {label}


def test_a_constant_feature_changes_nothing():
    (train, labels), (test, _) = features(), features(50, seed=1)
    first, second = fit_probe(train, labels, 0.1), fit_probe(np.c_[train, np.full(90, 7.0)], labels, 0.1)
    assert first.decision_function(test) == pytest.approx(second.decision_function(np.c_[test, np.full(50, 8.0)]), abs=1e-9)


def test_more_features_than_images():
    generator = np.random.default_rng(0)
    train, labels = generator.normal(size=(10, 40)), np.arange(10) % 2
    assert fit_probe(train, labels, 1e-6).score(train, labels) == 1


@pytest.fixture
def pixels_as_features(monkeypatch):
    monkeypatch.setattr(module, "extract_features", lambda images, *_: images.reshape(len(images), -1).astype(float))


class Protocol:
    """What the probe reads of a protocol once the features are there."""

    probe_ridge = 0.1


def tiny(labels):
    """Images [N, 1, 1, 3] of one pixel, whose channels tell their class."""
    return (200 * np.eye(3)[labels] + 20).astype(np.uint8)[:, None, None], labels


def accuracy(labels):
    images, truth = tiny(np.arange(60) % 3)
    return np.mean(probe_predictions(tiny(labels), images, Protocol(), "cpu") == truth)


def test_what_is_separable_is_learnt(pixels_as_features):
    assert accuracy(np.arange(30) % 3) == 1.0


def test_accuracy_counts_hits_and_an_absent_class_misses(pixels_as_features):
    assert accuracy(np.arange(30) % 2) == pytest.approx(2 / 3)
    assert accuracy(np.zeros(30, int)) == pytest.approx(1 / 3)
