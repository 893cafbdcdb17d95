"""Labelled images in memory, their digests, and resizing."""

import hashlib
import typing
from collections.abc import Callable

import numpy as np
from PIL import Image

from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError


class LabelledImages(typing.NamedTuple):
    """Images of one split.

    Attributes:
        images: uint8 [N, H, W, C] in [0, 255]; C is 1 (grey) or 3 (RGB).
        labels: int64 [N], positions in the entry's ``classes``.
        users: name of the person that each image is of, str [N]; None if the entry names none.
    """

    images: np.ndarray
    labels: np.ndarray
    users: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> "LabelledImages":
        """Return the images at int64 ``indices`` [M], in that order."""
        users = None if self.users is None else self.users[indices]
        return LabelledImages(self.images[indices], self.labels[indices], users)


Parts = dict[str, LabelledImages]
"""What a loader returns: ``train``, and ``validation`` and ``test`` where the source has them apart."""


def resize(images: np.ndarray, resolution: int) -> np.ndarray:
    """Resize with Pillow's Lanczos filter, whose 8-bit arithmetic is the same on every machine.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        resolution: side of the result, in pixels.

    Returns:
        uint8 [N, resolution, resolution, 1 or 3]; unchanged pixels if the side is right already.
    """
    if images.shape[1:3] != (resolution, resolution):
        size = (resolution, resolution)
        images = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])
    return images if images.ndim == 4 else images[..., np.newaxis]


def array_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 hex digest of the shapes and bytes of uint8 images and int64 labels."""
    digest = hashlib.sha256()
    for array in (images.astype("|u1"), labels.astype("<i8")):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_digest(entry: DatasetEntry, compute: Callable[[], str]) -> None:
    """Compare the source's digest with the entry's, if the entry has one.

    Args:
        entry: names the source and its expected SHA-256.
        compute: gives the digest of what was found; called only if it is needed.

    Raises:
        UserError: the digests differ.
    """
    if entry.sha256 is None:
        return
    found = compute()
    if found != entry.sha256:
        raise UserError("sha256", entry.sha256, f"{entry.source} has digest {found}; the source has changed or is another one")
