"""Splits into train, validation and test: each image's place depends on that image, or on its user, alone."""

import hashlib
import hmac
from collections.abc import Iterable

import numpy as np

from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

HELD_OUT = ("test", "validation")  # in the order in which they are cut off


def counts_to_hold_out(splits: np.ndarray, entry: DatasetEntry) -> dict[str, int]:
    """Return how many images, on average, each split takes out of ``train``; a split of 0 that the source has not stays empty.

    Args:
        splits: of each image, str [N], as its source tells them.
        entry: gives the counts.

    Raises:
        UserError: a count is not 0 although the source has that split, or leaves nothing for training.
    """
    counts = {name: getattr(entry, name) for name in HELD_OUT if getattr(entry, name)}
    for name in counts.keys() & set(splits.tolist()):
        raise UserError(name, counts[name], f"must be 0: the source has its own {name} split")
    total = int((splits == "train").sum())
    for name, count in counts.items():
        if count >= total:
            raise UserError(name, count, f"must be below {total}, the source's images: it has no {name} split")
    if sum(counts.values()) >= total:
        raise UserError("validation", counts.get("validation"), f"leaves none of {total} images for training")
    return counts


def placed(splits: np.ndarray, counts: dict[str, int], hashes: np.ndarray | None) -> np.ndarray:
    """Return the split of each image, uint8 [N], a position in `dpsapf.experiment.columns.SPLITS`.

    A split that the source has apart is kept as it is. A missing one is held out of ``train``: each image is drawn by its
    hash, with probability count/N. So another image cannot move it, and a guarantee for the training images is one for all
    images of the source. Equal images, and the images of one user, stay together. The number held out varies as
    Binomial(N, count/N) does.

    Args:
        splits: of each image, as its source tells them, str [N].
        counts: what `counts_to_hold_out` found; a split that is neither here nor in ``splits`` stays empty.
        hashes: of each image, float64 [N]; None if nothing is held out.

    Raises:
        UserError: no image falls into a split that is to have some.
    """
    places = np.array([SPLITS.index(name) for name in splits.tolist()], np.uint8)
    if counts:
        pool = np.flatnonzero(splits == "train")
        edges = np.cumsum([count / len(pool) for count in counts.values()])
        names = [SPLITS.index(name) for name in (*counts, "train")]
        places[pool] = np.array(names, np.uint8)[np.searchsorted(edges, hashes[pool], side="right")]
    for name in ("train", *counts):
        if not (places == SPLITS.index(name)).any():
            asked = counts.get(name, len(places))
            raise UserError(name, asked, "no image fell into this split: hold more out, or change split_seed")
    return places


def unit_hashes(messages: Iterable[bytes], seed: int) -> np.ndarray:
    """Map each message to [0, 1) by HMAC-SHA-256: an image's user's name if it has one, else its pixels; float64 [N].

    Args:
        messages: of the images.
        seed: the key: another one gives another split.
    """
    key = f"dpsapf split {seed}".encode()
    heads = b"".join(hmac.digest(key, message, hashlib.sha256)[:8] for message in messages)
    return (np.frombuffer(heads, dtype=">u8") >> np.uint64(11)) * 2.0**-53
