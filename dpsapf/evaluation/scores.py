"""What a classifier's predictions on real test images are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from dpsapf.experiment.records import ClassifierScores

BINS = 15  # of confidence, as in Guo et al. 2017


@dataclass(frozen=True)
class Predictions:
    """What one training of a classifier says of the test images.

    Attributes:
        classes: predicted ones, int64 [n].
        confidences: probability that it gives to each of them, float64 [n] in [0, 1]; None if it gives none (the probe).
    """

    classes: np.ndarray
    confidences: np.ndarray | None

    @classmethod
    def of(cls, logits: np.ndarray) -> "Predictions":
        """Take the most probable class of each image from logits [n, classes]."""
        return cls(logits.argmax(1), softmax(logits.astype(np.float64), axis=1).max(1))


def score(labels: np.ndarray, predictions: Predictions, classes: int) -> ClassifierScores:
    """Score predictions.

    Args:
        labels: true classes, int64 [n].
        predictions: of the same images.
        classes: number of classes.

    Returns:
        Accuracy; macro-F1, the mean of the classes' F1 over those that have a test image; the calibration error; each
        class's accuracy, None where it has no test image; and counts of true (rows) against predicted classes (columns).
    """
    counts = confusion_matrix(labels, predictions.classes, labels=np.arange(classes))
    images = counts.sum(1)
    return ClassifierScores(
        accuracy=float(accuracy_score(labels, predictions.classes)),
        macro_f1=float(f1_score(labels, predictions.classes, labels=np.flatnonzero(images), average="macro", zero_division=0)),
        calibration_error=calibration_error(labels, predictions),
        per_class_accuracy=tuple(
            float(hits) / int(count) if count else None for hits, count in zip(counts.diagonal(), images, strict=True)
        ),
        confusion=tuple(tuple(map(float, row)) for row in counts),
    )


def calibration_error(labels: np.ndarray, predictions: Predictions) -> float | None:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 5), None without confidences.

    Confidences fall into `BINS` bins of equal width, ((b - 1)/B, b/B]. The error is the mean over images of the distance
    between their bin's accuracy and its mean confidence, in [0, 1].
    """
    if predictions.confidences is None:
        return None
    hits = (labels == predictions.classes).astype(np.float64)
    bins = np.clip(np.ceil(predictions.confidences * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gaps = np.bincount(bins, hits - predictions.confidences, BINS)
    return float(np.abs(gaps).sum() / len(labels))


def average(scores: Sequence[ClassifierScores]) -> ClassifierScores:
    """Average scores of several trainings, or classifiers, on the same test images, entry by entry.

    A calibration error is the mean over those that have one.
    """
    calibrated = [found.calibration_error for found in scores if found.calibration_error is not None]
    return ClassifierScores(
        accuracy=float(np.mean([found.accuracy for found in scores])),
        macro_f1=float(np.mean([found.macro_f1 for found in scores])),
        calibration_error=float(np.mean(calibrated)) if calibrated else None,
        per_class_accuracy=tuple(
            None if None in values else float(np.mean(values))
            for values in zip(*(found.per_class_accuracy for found in scores), strict=True)
        ),
        confusion=tuple(tuple(map(float, row)) for row in np.mean([found.confusion for found in scores], axis=0)),
    )
