"""Building blocks of the procedural datasets: smooth random fields and per-image generators."""

import functools
from collections.abc import Callable

import numpy as np

from dpsapf.datasets.images import Source, array_digest, check_digest, resize
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.progress import track
from dpsapf.support.randomness import numpy_generator

CANVAS = 64  # side on which images are drawn before they are reduced, in pixels
GENERATOR_SEED = 0  # the procedural datasets are fixed sets: only their split depends on the entry


def render_dataset(entry: DatasetEntry, draw: Callable[[int, np.random.Generator], np.ndarray], per_class: int) -> Source:
    """Draw ``per_class`` images of every class, each from its own seed.

    Args:
        entry: gives loader name, number of classes, ``resolution`` and, if any, the digest.
        draw: (label, generator) -> floats [CANVAS, CANVAS] or [CANVAS, CANVAS, 3]; 0 is black, 1 white,
            values outside are cut off.
        per_class: images per class.

    Returns:
        All images, without splits: uint8 [classes * per_class, resolution, resolution, 1 or 3].

    Raises:
        UserError: the entry has a digest and the rendered arrays have another.
    """
    labels = np.repeat(np.arange(len(entry.classes), dtype=np.int64), per_class)
    images = [
        draw(int(label), numpy_generator(GENERATOR_SEED, entry.loader, int(label), index % per_class))
        for index, label in enumerate(track(labels, f"render {entry.loader}", "image"))
    ]
    pixels = resize(np.round(255 * np.clip(images, 0, 1)).astype(np.uint8), entry.resolution)
    check_digest(entry, lambda: array_digest(pixels, labels))
    return Source.of_arrays(pixels, labels)


def smooth_noise(generator: np.random.Generator, rows: int, columns: int | None = None) -> np.ndarray:
    """Draw a smooth random field: normal values on a coarse grid, interpolated by smoothsteps.

    Args:
        generator: source of randomness.
        rows: cells of the coarse grid from top to bottom; fewer cells make larger blotches.
        columns: cells from left to right; ``rows`` if omitted.

    Returns:
        float64 [CANVAS, CANVAS], mean 0, standard deviation about 0.7.
    """
    columns = rows if columns is None else columns
    return _interpolation(rows) @ generator.standard_normal((rows + 1, columns + 1)) @ _interpolation(columns).T


@functools.lru_cache
def _interpolation(cells: int) -> np.ndarray:
    place = (np.arange(CANVAS) + 0.5) / CANVAS * cells
    left = place.astype(int)
    fraction = place - left
    weight = fraction**2 * (3 - 2 * fraction)
    matrix = np.zeros((CANVAS, cells + 1))
    matrix[np.arange(CANVAS), left] = 1 - weight
    matrix[np.arange(CANVAS), left + 1] = weight
    return matrix
