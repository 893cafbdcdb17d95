"""Splits into train, validation and test: each image's place depends on that image, or on its user, alone."""

import hashlib
import hmac

import numpy as np

from dpsapf.datasets.images import LabelledImages, Parts
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError


def split(parts: Parts, entry: DatasetEntry) -> Parts:
    """Complete a loader's parts to ``train``, ``validation`` and ``test``.

    A split that the source has apart is kept as it is. A missing one is held out of ``train``: each image is drawn by a
    keyed hash of its pixels, or of its user's name, with probability count/N. So another image cannot move it, and a
    guarantee for the training images is one for all images of the source. Equal images, and the images of one user, stay
    together. The number held out varies as Binomial(N, count/N) does.

    Returns:
        The three splits, in the order of `dpsapf.experiment.columns.SPLITS`, no image in two of them. What was split
        stands in the order of its hashes.

    Raises:
        UserError: a held-out count is not 0 although the source has that split, or is 0 although it
            has not, or leaves nothing for training; or no image falls into a split.
    """
    counts = {name: getattr(entry, name) for name in ("test", "validation")}
    for name in parts.keys() & counts.keys():
        _refuse_count(name, counts.pop(name))
    if counts:
        parts = parts | _divided(parts["train"], counts, entry.split_seed)
    return {name: parts[name] for name in SPLITS}


def _refuse_count(name: str, count: int) -> None:
    if count:
        raise UserError(name, count, f"must be 0: the source has its own {name} split")


def _divided(pool: LabelledImages, counts: dict[str, int], seed: int) -> Parts:
    """Cut the unit interval into a piece for each held-out split, and the rest for training."""
    total = len(pool.labels)
    for name, count in counts.items():
        if not 1 <= count < total:
            raise UserError(name, count, f"must be at least 1 and below {total}, the source's images: it has no {name} split")
    edges = np.cumsum([count / total for count in counts.values()])
    if edges[-1] >= 1:
        raise UserError("validation", counts.get("validation"), f"leaves none of {total} images for training")
    hashes = unit_hashes(pool, seed)
    order = np.argsort(hashes, kind="stable")
    pieces = np.searchsorted(edges, hashes[order], side="right")
    result = {name: pool.take(order[pieces == place]) for place, name in enumerate([*counts, "train"])}
    for name, part in result.items():
        if not len(part.labels):
            raise UserError(name, counts.get(name, total), "no image fell into this split: hold more out, or change split_seed")
    return result


def unit_hashes(pool: LabelledImages, seed: int) -> np.ndarray:
    """Map each image to [0, 1) by HMAC-SHA-256 of its user's name if it has one, else of its pixels; float64 [N].

    Args:
        pool: any images.
        seed: the key: another one gives another split.
    """
    key = f"dpsapf split {seed}".encode()
    values = pool.images if pool.users is None else pool.users
    names = (str(value).encode() if pool.users is not None else value.tobytes() for value in values)
    heads = b"".join(hmac.digest(key, name, hashlib.sha256)[:8] for name in names)
    return (np.frombuffer(heads, dtype=">u8") >> np.uint64(11)) * 2.0**-53
