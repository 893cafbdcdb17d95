"""A linear probe: utility without chance, ridge regression on the protocol's features."""

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dpsapf.evaluation.features import Pixels, extract_features
from dpsapf.experiment.registries import ProtocolEntry


def probe_predictions(train: tuple[Pixels, np.ndarray], images: Pixels, protocol: ProtocolEntry, device: str) -> np.ndarray:
    """Fit a linear probe to the features of some images and let it predict others.

    Args:
        train: images uint8 [N, H, W, 3] and labels int64 [N].
        images: real test images, uint8 [M, H, W, 3].
        protocol: names the feature network and the strength of the ridge.
        device: ``cpu`` or ``cuda``, of the feature network.

    Returns:
        Predicted classes, int64 [M].

    Raises:
        UserError: the feature network is unknown, has another digest, or cannot be had.
    """
    probe = fit_probe(extract_features(train[0], protocol, device), train[1], protocol.probe_ridge)
    return probe.predict(extract_features(images, protocol, device))


def fit_probe(features: np.ndarray, labels: np.ndarray, ridge: float) -> Pipeline:
    """Fit ridge regression of the labels' indicators, with a free intercept, on standardised features.

    It minimises (1/N) ||Y - X W - b||^2 + ridge ||W||^2 exactly, in float64, and predicts the largest indicator. No seed, no
    iteration; a class without an image is never predicted.

    Args:
        features: float64 [N, D]; each is given mean 0 and variance 1 over these images.
        labels: int64 [N].
        ridge: strength per image, above 0.

    Returns:
        A pipeline whose ``predict`` maps features [M, D] to labels [M].
    """
    solver = RidgeClassifier(alpha=ridge * len(labels), solver="cholesky")
    return make_pipeline(StandardScaler(), solver).fit(features, labels)
