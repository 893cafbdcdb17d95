"""Seeded, stratified splits into train, validation and test."""

import numpy as np

from dpsapf.datasets.images import LabelledImages, Parts
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator


def split(parts: Parts, entry: DatasetEntry) -> Parts:
    """Complete a loader's parts to ``train``, ``validation`` and ``test``.

    A split that the source has apart is kept as it is. A missing one is held out of ``train``, the
    test images first, by a permutation seeded with the entry's ``split_seed``.

    Returns:
        The three splits, in the order of `dpsapf.experiment.records.SPLITS`; no image is in two of them.

    Raises:
        UserError: a held-out count is not 0 although the source has that split, or is 0 although it
            has not, or leaves a class without training images.
    """
    result = dict(parts)
    for name in ("test", "validation"):
        count = getattr(entry, name)
        if name in parts:
            _refuse_count(name, count)
        else:
            result["train"], result[name] = _hold_out(result["train"], name, count, entry)
    return {name: result[name] for name in SPLITS}


def _refuse_count(name: str, count: int) -> None:
    if count:
        raise UserError(name, count, f"must be 0: the source has its own {name} split")


def _hold_out(train: LabelledImages, name: str, count: int, entry: DatasetEntry) -> tuple[LabelledImages, LabelledImages]:
    classes, images = len(entry.classes), len(train.labels)
    if not classes <= count <= images - classes:
        least = f"at least {classes} (one per class; the source has no {name} split of its own)"
        raise UserError(name, count, f"must be {least} and at most {images - classes} of {images} images")
    kept, held = stratified_holdout(train.labels, count, numpy_generator(entry.split_seed, "split", name))
    return train.take(kept), train.take(held)


def stratified_holdout(labels: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``count`` images so that each class keeps its share, rounded by largest remainder.

    Args:
        labels: int64 [N].
        count: images to hold out, in [0, N].
        generator: draws the permutation.

    Returns:
        Indices of the kept [N - count] and the held-out [count] images, both in permuted order.
    """
    order = generator.permutation(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(class_quotas(np.bincount(labels), count)):
        held[np.flatnonzero(labels[order] == label)[:quota]] = True
    return order[~held], order[held]


def class_quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """Share ``count`` out over classes of the given sizes by largest remainder (ties: lower label first).

    Args:
        sizes: images per class, int64 [K].
        count: at most the sum of ``sizes``.

    Returns:
        int64 [K] that sum to ``count``.
    """
    whole, remainder = np.divmod(sizes * count, sizes.sum())
    largest = np.argsort(-remainder, kind="stable")[: count - whole.sum()]
    whole[largest] += 1
    return whole
