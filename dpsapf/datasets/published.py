"""What the loaders of published datasets share: they read the files as their owners publish them, and check them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpsapf.datasets.images import check_digest
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError
from dpsapf.support.files import md5, sha256

OWN = "of a part of it, or a copy that was changed, write the images as CLASS/FILE.png and name them in an entry with "
OWN += "loader: image-folder (docs/datasets.md, Your own images)"
AGAIN = f"it is truncated, damaged or another file: get it again from its owner; {OWN}"


def published(entry: DatasetEntry, what: str) -> Path:
    """Return the path of an entry's source, whose digest is the entry's if that has one.

    Args:
        entry: names the source.
        what: is to be there, for errors.

    Raises:
        UserError: nothing is there, or something of another digest.
    """
    path = Path(entry.source)
    if not path.exists():
        raise UserError("source", entry.source, f"does not exist; put {what} there")
    check_digest(entry, lambda: sha256(path), OWN)
    return path


def check_md5(name: str, file: BinaryIO, expected: str) -> None:
    """Compare a file with the digest that its owners, or the loaders that all use, publish.

    Raises:
        UserError: the digests differ.
    """
    found = md5(file)
    if found != expected:
        raise UserError(name, f"md5 {found}", f"must be {expected}: {AGAIN}")


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Check that labels, integers [N], are in [0, classes).

    Raises:
        UserError: one is not.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(name, f"label {wrong[0]}", f"labels must be 0 to {classes - 1}: {AGAIN}")


def check_counts(entry: DatasetEntry, splits: np.ndarray, expected: Mapping[str, int]) -> None:
    """Compare the number of images of each split, told of each image as str [N], with the official one.

    Raises:
        UserError: a split has more or fewer.
    """
    found = Counter(splits.tolist())
    for name, count in expected.items():
        if found[name] != count:
            raise UserError("source", entry.source, f"has {found[name]} {name} images and must have {count}: {AGAIN}")


def in_use(splits: np.ndarray, entry: DatasetEntry) -> tuple[np.ndarray, np.ndarray]:
    """Find the images that are used, and their splits.

    Args:
        splits: of each published image, str [N]; another name than those of `dpsapf.experiment.columns.SPLITS`: not used.
        entry: its ``train`` says whether training images are drawn, see `drawn`.

    Returns:
        Positions of the images, int64 [n], and their splits, str [n].
    """
    splits = splits if entry.train is None else drawn(splits, entry.train)
    kept = np.flatnonzero(np.isin(splits, SPLITS))
    return kept, splits[kept]


def drawn(splits: np.ndarray, count: int) -> np.ndarray:
    """Draw training images as the reference code does: ``torch.utils.data.random_split`` of all of them, with seed 0.

    Args:
        splits: of each image, str [N].
        count: training images to draw.

    Returns:
        str [N]: the other training images are validation images, in place of the source's own, which are ``not used``.

    Raises:
        UserError: there are not more training images than that.
    """
    import torch

    training = np.flatnonzero(splits == "train")
    if count >= len(training):
        raise UserError("train", count, f"must be below {len(training)}, the source's training images")
    found = np.where(splits == "validation", "not used", splits).astype("U16")
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).numpy()
    found[training[order[count:]]] = "validation"
    return found
