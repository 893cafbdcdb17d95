"""OCTMNIST (MedMNIST v2, Yang et al. 2023; images of Kermany et al. 2018) as published: ``octmnist_128.npz``."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpsapf.datasets.images import BATCH, Source, resize
from dpsapf.datasets.published import AGAIN, check_counts, check_labels, check_md5, in_use, published
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

MD5 = "0a97e76651ace45c5d943ee3f65b63ae"  # of octmnist_128.npz, Zenodo record 10519652, as medmnist's loader has it
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # MedMNIST's names and ours
COUNTS = {"train": 97_477, "validation": 10_832, "test": 1_000}
SIDE = 128
CLASSES = 4


def octmnist(entry: DatasetEntry) -> Source:
    """Load grey scans of 128 x 128 pixels in their own splits, a batch at a time: the archive never is in memory.

    Returns:
        All scans, training first, resized to the entry's resolution when they are needed.

    Raises:
        UserError: the archive has another digest, is damaged, or does not hold what MedMNIST publishes.
    """
    path = published(entry, "octmnist_128.npz")
    with path.open("rb") as file:
        check_md5(str(path), file, MD5)
    with _archive(path) as archive:
        labels = {split: _labels(archive, f"{theirs}_labels.npy") for theirs, split in SPLITS.items()}
        for theirs, split in SPLITS.items():
            with _images(archive, theirs, len(labels[split])):
                pass
    together = np.concatenate(list(labels.values()))
    check_labels(str(path), together, CLASSES)
    splits = np.repeat(list(labels), [len(part) for part in labels.values()])
    check_counts(entry, splits, COUNTS)
    kept, splits = in_use(splits, entry)
    used = np.zeros(len(together), bool)
    used[kept] = True
    sizes = {theirs: len(labels[split]) for theirs, split in SPLITS.items()}
    return Source(together[kept], splits, partial(_decoded, path, sizes, used, entry.resolution))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError("source", str(path), f"must be MedMNIST's octmnist_128.npz ({error}): {AGAIN}") from error


def _labels(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False).astype(np.int64).reshape(-1)


@contextmanager
def _images(archive: zipfile.ZipFile, theirs: str, count: int) -> Iterator[BinaryIO]:
    """Open a member at its first image."""
    with archive.open(f"{theirs}_images.npy") as file:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = readers[np.lib.format.read_magic(file)](file)
        if (shape, by_columns, dtype) != ((count, SIDE, SIDE), False, np.uint8):
            raise ValueError(f"{theirs}_images is {dtype} {shape} for {count} labels")
        yield file


def _decoded(path: Path, sizes: dict[str, int], used: np.ndarray, resolution: int, threads: int) -> Iterator[np.ndarray]:
    first = 0
    with _archive(path) as archive:
        for theirs, count in sizes.items():
            with _images(archive, theirs, count) as file:
                for start in range(0, count, BATCH):
                    size = min(BATCH, count - start)
                    images = np.frombuffer(file.read(size * SIDE**2), np.uint8).reshape(size, SIDE, SIDE)
                    yield resize(images[used[first + start : first + start + size]], resolution)
            first += count
