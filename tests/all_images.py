"""A source's images, or a prepared split's, in memory."""

import typing

import numpy as np


class Part(typing.NamedTuple):
    images: np.ndarray
    labels: np.ndarray


def all_images(source, threads=1):
    """uint8 [N, H, W, C] of a `dpsapf.datasets.images.Source`."""
    return np.concatenate(list(source.decoded(threads)))


def as_part(source):
    """Images and labels of a source that tells no splits."""
    assert set(source.splits.tolist()) == {"train"} and source.users is None
    return Part(all_images(source), source.labels)
