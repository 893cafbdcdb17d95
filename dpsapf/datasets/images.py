"""Labelled images as a loader finds them, their digests, and resizing."""

import hashlib
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

BATCH = 256  # images that are decoded, and held in memory, at a time


@dataclass(frozen=True)
class Source:
    """Where a dataset's images come from: what is known of them before they are decoded, and how they are.

    Attributes:
        labels: int64 [N], positions in the entry's ``classes``.
        splits: the split of each image that its source tells, str [N]; ``train`` where it tells none.
        decoded: called with a number of threads, yields all N images in order, a batch at a time: uint8 [b, resolution,
            resolution, channels] in [0, 255]; channels is 1 (grey) or 3 (RGB). Where images are faulty, it gives no more of
            them, and raises an error with all faulty ones at the end.
        users: name of the person that each image is of, str [N]; None if the source tells none.
        names: of the file that each image is, N of them; None if the source has no files.
        mistakes: what is known to be wrong with the source; ``decoded`` tells what is wrong with its N images.
    """

    labels: np.ndarray
    splits: np.ndarray
    decoded: Callable[[int], Iterator[np.ndarray]]
    users: np.ndarray | None = None
    names: Sequence[str] | None = None
    mistakes: tuple[UserError, ...] = ()

    @classmethod
    def of_arrays(cls, images: np.ndarray, labels: np.ndarray) -> "Source":
        """Make a source of images in memory, uint8 [N, H, W, C], that tells no splits."""
        batches = range(0, len(images), BATCH)
        return cls(labels, np.full(len(labels), "train"), lambda threads: (images[start : start + BATCH] for start in batches))


class LabelledImages(typing.NamedTuple):
    """Images in memory: uint8 [N, H, W, 3] in [0, 255], and their labels, int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


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


def check_side(where: str, size: Sequence[int], resolution: int) -> None:
    """Check that images which another group made have the dataset's resolution: a filter of ours would change their FID.

    Args:
        where: what has the size, for errors.
        size: width and height [pixels].
        resolution: side that they must have [pixels].

    Raises:
        UserError: it is another.
    """
    if tuple(size) != (resolution, resolution):
        remedy = f"must be {resolution} x {resolution}: resize as their authors do, or prepare the dataset at their resolution"
        raise UserError(where, f"{size[0]} x {size[1]}", remedy)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Repeat grey [N, H, W, 1] to [N, H, W, 3]; RGB stays as it is."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def array_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 hex digest of the shapes and bytes of uint8 images and int64 labels."""
    digest = hashlib.sha256()
    for array in (images.astype("|u1"), labels.astype("<i8")):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_digest(entry: DatasetEntry, compute: Callable[[], str], remedy: str = "") -> None:
    """Compare the source's digest with the entry's, if the entry has one.

    Args:
        entry: names the source and its expected SHA-256.
        compute: gives the digest of what was found; called only if it is needed.
        remedy: what to do with a source that was changed on purpose.

    Raises:
        UserError: the digests differ.
    """
    if entry.sha256 is None:
        return
    found = compute()
    if found != entry.sha256:
        told = f"{entry.source} has digest {found}; the source has changed or is another one"
        raise UserError("sha256", entry.sha256, f"{told}; {remedy}" if remedy else told)
