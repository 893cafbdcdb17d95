"""Synthetic images of a run as files: the same images give the same bytes, and nothing but pixels is in them."""

import re
import shutil
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dpsapf.privacy.leaving import check_samples
from dpsapf.release.found import Found
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track

UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
ARCHIVE = "images.npz"


class Published(typing.NamedTuple):
    """One class of a published folder."""

    folder: str
    name: str
    prompt: str
    count: int


def write_images(folder: Path, found: Found) -> list[Published]:
    """Write images.npz (``images`` uint8 [N, H, W, 3], ``labels`` int64 [N]), and each image as PNG in its class' folder.

    Returns:
        The classes, in label order.

    Raises:
        UserError: the images are of other classes, or another number, than the records say; or more is in their archive.
    """
    with np.load(found.archive, allow_pickle=False) as arrays:
        labels = arrays["labels"]
    dataset = found.dataset
    if len(labels) != found.sampling.count or not np.isin(labels, np.arange(len(dataset.classes))).all():
        remedy = f"the options beside it say {found.sampling.count} of {len(dataset.classes)} classes: sample again"
        raise UserError(str(found.archive), f"{len(labels)} images", remedy)
    held = found.ledger.held_against
    check_samples(found.archive, held and held.generation, found.sampling.count, dataset)
    names = class_folders(dataset.classes)
    for name in names:
        (folder / name).mkdir(parents=True)
    for row, image in enumerate(track(images_of(found.archive), "images", "image", total=len(labels))):
        Image.fromarray(image).save(folder / names[labels[row]] / f"{row:06d}.png", format="PNG")
    shutil.copyfile(found.archive, folder / ARCHIVE)
    counts = np.bincount(labels, minlength=len(names)).tolist()
    return [Published(*row) for row in zip(names, dataset.classes, dataset.prompts, counts, strict=True)]


def class_folders(classes: tuple[str, ...]) -> list[str]:
    """Name a folder for each class: its label, so that folders sort as labels do, and what of its name is safe in a path."""
    digits = len(str(len(classes) - 1))
    return [f"images/{label:0{digits}d}-{UNSAFE.sub('-', name)}".rstrip("-.") for label, name in enumerate(classes)]


def images_of(archive: Path) -> Iterator[np.ndarray]:
    """Read the images of an .npz one by one: uint8 [H, W, 3]."""
    with zipfile.ZipFile(archive) as opened, opened.open("images.npy") as file:
        np.lib.format.read_magic(file)
        (count, *shape), _, dtype = np.lib.format.read_array_header_1_0(file)
        for _ in range(count):
            yield np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
