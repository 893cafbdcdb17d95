"""A prepared dataset in one file: images in the order of their source, and the split that each is in.

The file is ``dataset.safetensors``: ``images`` uint8 [N, H, W, 1 or 3], ``labels`` int64 [N], ``split`` uint8 [N], a position in
`dpsapf.experiment.columns.SPLITS`, ``users`` int64 [N] if the source tells them, numbered from 0 with those of training
images first, and 32 secret bytes, ``salt``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpsapf.datasets.images import as_rgb
from dpsapf.experiment.columns import SPLITS
from dpsapf.support.arrays import Rows, Writer, open_arrays, writing
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic

SALT_BYTES = 32


@dataclass(frozen=True)
class Part:
    """One split of a prepared dataset; its images are read when they are asked for.

    Attributes:
        labels: int64 [n], positions in the dataset's classes.
        users: int64 [n], whom each image is of, of the training images numbered from 0 without a gap; None if not told.
        positions: of its images in the file, int64 [n].
        stored: all images of the file.
    """

    labels: np.ndarray
    users: np.ndarray | None
    positions: np.ndarray
    stored: Rows

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read images: uint8 [b, H, W, 3] in [0, 255], grey three times."""
        return as_rgb(self.stored[self.positions[rows]])


def read_part(path: Path, split: str) -> Part:
    """Open one split of a prepared dataset.

    Raises:
        UserError: the file is truncated, or is none of prepare-dataset's.
    """
    arrays, _ = _opened(path)
    positions = np.flatnonzero(arrays["split"][:] == SPLITS.index(split))
    users = arrays["users"][:][positions] if "users" in arrays else None
    return Part(arrays["labels"][:][positions], users, positions, arrays["images"])


def read_held_out(path: Path, split: str, needed_for: str) -> Part:
    """Open a split of a prepared dataset that something cannot do without.

    Args:
        path: dataset.safetensors.
        split: a name of `dpsapf.experiment.columns.SPLITS`.
        needed_for: what its images are needed for, for errors.

    Raises:
        UserError: it has no images, or as `read_part`.
    """
    part = read_part(path, split)
    if not len(part):
        remedy = f"has no {split} images, which {needed_for} needs: {split} is 0 in the dataset's entry, hold some out"
        raise UserError("--archive", str(path), f"{remedy} and prepare it again")
    return part


def read_salt(path: Path) -> bytes:
    """Read a prepared dataset's secret bytes."""
    return _opened(path)[0]["salt"][:].tobytes()


def kept_salt(archive: Path) -> bytes:
    """Return the secret bytes of a prepared dataset, which stay in its folder: private.salt, or else its last archive, has them.

    Raises:
        UserError: private.salt is damaged.
    """
    path = archive.with_name("private.salt")
    if not path.exists():
        with atomic(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(_salt_of(archive) or os.urandom(SALT_BYTES))
    salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        remedy = "restore it from a copy; or delete it, and the same images become another dataset, for which all is made anew"
        raise UserError(str(path), f"{len(salt)} bytes", f"must be {SALT_BYTES}: {remedy}")
    return salt


def _salt_of(archive: Path) -> bytes | None:
    try:
        return read_salt(archive)
    except UserError:  # there is none, or none that can be read
        return None


def _opened(path: Path) -> tuple[dict[str, Rows], dict[str, str]]:
    arrays, facts = open_arrays(path)
    missing = {"images", "labels", "split", "salt"} - arrays.keys()
    if missing:
        raise UserError("--archive", str(path), f"has no {min(missing)}: run prepare-dataset again")
    return arrays, facts


@contextmanager
def preparing(path: Path, shape: tuple[int, int, int, int], *, users: bool) -> Iterator[Writer]:
    """Give a writer of a prepared dataset with images of a shape [N, H, W, C], with or without users."""
    count = shape[0]
    layout = {"images": ("U8", shape), "labels": ("I64", (count,)), "split": ("U8", (count,)), "salt": ("U8", (SALT_BYTES,))}
    with writing(path, layout | ({"users": ("I64", (count,))} if users else {})) as writer:
        yield writer
