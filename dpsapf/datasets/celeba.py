"""CelebA (Liu et al. 2015) as published: a folder with the aligned images, their attributes and their partition."""

from pathlib import Path

import numpy as np

from dpsapf.datasets.image_files import files_source, listed
from dpsapf.datasets.images import Source
from dpsapf.datasets.published import AGAIN, OWN, check_counts, check_md5, in_use, published
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

ARCHIVE, IMAGES, ATTRIBUTES, PARTITION = (
    "img_align_celeba.zip",
    "img_align_celeba",
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
)
MD5 = {
    ARCHIVE: "00d2c5bc6d35e252742224ab0c1e8fcb",
    ATTRIBUTES: "75e246fa4810816ffd6ee81facbd244c",
    PARTITION: "d32c9cbf5e040fd4025c592c306e6668",
}  # as torchvision's loader has them
COUNTS = {"train": 162_770, "validation": 19_867, "test": 19_962}
SPLITS = {"0": "train", "1": "validation", "2": "test"}
ATTRIBUTE, VALUES = "Male", {"-1": 0, "1": 1}


def celeba(entry: DatasetEntry) -> Source:
    """Load the aligned images (178 x 218) by their attribute Male, in CelebA's own partition.

    The entry's source is a folder with ``list_attr_celeba.txt``, ``list_eval_partition.txt``, and ``img_align_celeba.zip``,
    which is read in memory, or the folder ``img_align_celeba``.

    Returns:
        All images in the order of the attributes; label 1: male.

    Raises:
        UserError: names the file, and the line or image in it, that is wrong or missing.
    """
    folder = published(entry, f"a folder with {ARCHIVE}, {ATTRIBUTES} and {PARTITION}")
    labels = read_attribute(_text(folder, ATTRIBUTES), str(folder / ATTRIBUTES))
    partition = read_partition(_text(folder, PARTITION), str(folder / PARTITION))
    names = list(labels)
    without = [name for name in names if name not in partition]
    if without:
        raise UserError(str(folder / PARTITION), f"no line for {without[0]}", f"every image must have one: {AGAIN}")
    splits = np.array([partition[name] for name in names])
    check_counts(entry, splits, COUNTS)
    kept, splits = in_use(splits, entry)
    images, prefix = _images(folder)
    used = [prefix + names[position] for position in kept]
    present = listed(images)
    present.mistakes.tell()
    missing = sorted(set(used) - set(present.names))
    if missing:
        raise UserError(str(images), f"no {missing[0]}", f"lacks {len(missing)} image(s): {AGAIN}")
    return files_source(images, used, np.array(list(labels.values()), np.int64)[kept], splits, entry)


def _images(folder: Path) -> tuple[Path, str]:
    """Return where the images are, and what stands before their names there."""
    if (folder / IMAGES).is_dir():
        return folder / IMAGES, ""
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise UserError("source", str(folder), f"must have {ARCHIVE} or the folder {IMAGES}: put it there; {OWN}")
    with archive.open("rb") as file:
        check_md5(str(archive), file, MD5[ARCHIVE])
    return archive, f"{IMAGES}/"


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise UserError("source", str(folder), f"must have {name}: put it there; {OWN}")
    with path.open("rb") as file:
        check_md5(str(path), file, MD5[name])
    return path.read_text(encoding="utf-8")


def read_attribute(text: str, where: str) -> dict[str, int]:
    """Read the label of each image: 1 if it has the attribute Male.

    Args:
        text: of ``list_attr_celeba.txt``: the number of images, the attributes' names, and a line for each image with its
            name and -1 or 1 for each attribute.
        where: the file's name, for errors.

    Raises:
        UserError: a line is not like that, or there are more or fewer.
    """
    count, header, *lines = [*text.splitlines(), "", ""]
    attributes, labels = header.split(), {}
    if ATTRIBUTE not in attributes:
        raise UserError(where, header[:40], f"line 2 must name the attribute {ATTRIBUTE}: {AGAIN}")
    column = attributes.index(ATTRIBUTE)
    for line in filter(None, lines):
        name, *values = line.split()
        if len(values) != len(attributes) or values[column] not in VALUES:
            raise UserError(where, line[:40], f"must be a name and -1 or 1 for each attribute: {AGAIN}")
        labels[name] = VALUES[values[column]]
    if count.strip() != str(len(labels)):
        raise UserError(where, f"{len(labels)} images", f"line 1 says {count}: {AGAIN}")
    return labels


def read_partition(text: str, where: str) -> dict[str, str]:
    """Read the split of each image from ``list_eval_partition.txt``: lines of a name and 0, 1 or 2, without a header.

    Raises:
        UserError: a line is not like that.
    """
    partition = {}
    for line in filter(None, text.splitlines()):
        name, *split = line.split()
        if len(split) != 1 or split[0] not in SPLITS:
            raise UserError(where, line[:40], f"must be a name and 0 (train), 1 (validation) or 2 (test): {AGAIN}")
        partition[name] = SPLITS[split[0]]
    return partition
