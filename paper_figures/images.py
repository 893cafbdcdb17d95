"""A few images out of an archive that may be larger than memory."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpsapf.datasets.prepared import read_part


def read_rows(path: Path | str, rows: Sequence[int]) -> np.ndarray:
    """Read single images of samples.npz, or training images of dataset.safetensors, without the rest.

    Args:
        path: an archive, or a prepared dataset.
        rows: of images, or training images.

    Returns:
        uint8 [len(rows), H, W, 3].
    """
    if Path(path).suffix == ".safetensors":
        return read_part(Path(path), "train")[np.array(rows)]
    with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[np.lib.format.read_magic(file)](file)
        start, size = file.tell(), math.prod(shape[1:]) * dtype.itemsize
        read = []
        for row in rows:
            file.seek(start + row * size)
            read.append(np.frombuffer(file.read(size), dtype).reshape(shape[1:]))
    return np.stack(read)


def read_labels(path: Path | str) -> np.ndarray:
    """Read the labels of samples.npz, or of the training images of dataset.safetensors, int64 [N]."""
    if Path(path).suffix == ".safetensors":
        return read_part(Path(path), "train").labels
    with np.load(path, allow_pickle=False) as archive:
        return archive["labels"]
