"""Scores of predictions, against plain loops and scikit-learn's other functions."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import recall_score

from dpsapf.evaluation.scores import BINS, Predictions, average, calibration_error, score


def drawn(count=400, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, logits


def test_perfect_predictions():
    labels = np.arange(30) % 3
    found = score(labels, Predictions.of(200.0 * np.eye(3)[labels]), 3)
    assert (found.accuracy, found.macro_f1, found.per_class_accuracy) == (1, 1, (1, 1, 1))
    assert found.calibration_error == pytest.approx(0) and np.array_equal(found.confusion, 10 * np.eye(3))


def test_scores_are_those_of_plain_loops():
    labels, logits = drawn()
    found, said = score(labels, Predictions.of(logits), 4), logits.argmax(1)
    assert found.accuracy == pytest.approx(sum(labels == said) / 400)
    f1 = []
    for label in range(4):
        hits = sum((said == label) & (labels == label))
        precision, recall = hits / sum(said == label), hits / sum(labels == label)
        f1.append(2 * precision * recall / (precision + recall))
        for other in range(4):
            assert found.confusion[label][other] == sum((labels == label) & (said == other))
    assert found.macro_f1 == pytest.approx(np.mean(f1))
    assert found.per_class_accuracy == pytest.approx(tuple(recall_score(labels, said, average=None)))


def test_a_class_without_test_images_counts_nowhere():
    labels, said = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    found = score(labels, Predictions(said, None), 3)
    assert found.per_class_accuracy == (0.5, None, 1.0) and found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)  # class 0: precision 1, recall 1/2; class 2: 1


def test_the_confidence_is_the_largest_probability():
    logits = np.array([[0.0, np.log(3)], [np.log(9), 0.0]], np.float32)
    found = Predictions.of(logits)
    assert found.classes.tolist() == [1, 0] and found.confidences == pytest.approx([0.75, 0.9])


def test_the_calibration_error_is_that_of_guo_et_al_bin_by_bin():
    """Two of three right at 0.7, none of one at 0.95: bins 11 and 15, weights 3/4 and 1/4."""
    predictions = Predictions(np.array([0, 0, 1, 1]), np.array([0.7, 0.7, 0.7, 0.95]))
    assert calibration_error(np.array([0, 0, 0, 0]), predictions) == pytest.approx(3 / 4 * (0.7 - 2 / 3) + 1 / 4 * 0.95)


def test_the_calibration_error_agrees_with_sklearns_curve():
    labels, logits = drawn(5000)
    predictions = Predictions.of(logits)
    hits = labels == predictions.classes
    right, said = calibration_curve(hits, predictions.confidences, n_bins=BINS, strategy="uniform")
    counts = np.histogram(predictions.confidences, BINS, (0, 1))[0]
    expected = (counts[counts > 0] / 5000) @ np.abs(right - said)
    assert calibration_error(labels, predictions) == pytest.approx(expected) and expected > 0.01


def test_confidences_at_the_edges_have_a_bin():
    predictions = Predictions(np.array([0, 0]), np.array([0.0, 1.0]))
    assert calibration_error(np.array([1, 0]), predictions) == pytest.approx(0)
    assert calibration_error(np.array([0, 1]), predictions) == pytest.approx(1)


def test_gaps_of_different_bins_do_not_cancel():
    """Too sure in one bin, not sure enough in another: each counts."""
    predictions = Predictions(np.zeros(2, int), np.array([0.9, 0.5]))
    assert calibration_error(np.array([1, 0]), predictions) == pytest.approx((0.9 + 0.5) / 2)


def test_an_average_is_entry_by_entry():
    labels = np.array([0, 0, 1, 1])
    one = score(labels, Predictions(np.array([0, 0, 1, 1]), np.full(4, 0.9)), 3)
    other = score(labels, Predictions(np.array([1, 1, 1, 0]), None), 3)
    mean = average([one, other])
    assert (mean.accuracy, mean.per_class_accuracy) == (0.625, (0.5, 0.75, None))
    assert mean.calibration_error == pytest.approx(0.1)  # of the one that has it
    assert mean.confusion == ((1.0, 1.0, 0.0), (0.5, 1.5, 0.0), (0.0, 0.0, 0.0))
    assert average([other]).calibration_error is None
