"""A few images out of an archive that may be larger than memory."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_rows(path: Path | str, array: str, rows: Sequence[int]) -> np.ndarray:
    """Read single rows of an array in an ``.npz`` without loading the rest.

    Args:
        path: an archive of numeric arrays in C order.
        array: the array's name.
        rows: indices along the first axis.

    Returns:
        The rows, [len(rows), ...], in the archive's dtype.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as file:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[np.lib.format.read_magic(file)](file)
        start, size = file.tell(), math.prod(shape[1:]) * dtype.itemsize
        read = []
        for row in rows:
            file.seek(start + row * size)
            read.append(np.frombuffer(file.read(size), dtype).reshape(shape[1:]))
    return np.stack(read)


def read_labels(path: Path | str, array: str) -> np.ndarray:
    """Read the labels of an archive, int64 [N]."""
    with np.load(path, allow_pickle=False) as archive:
        return archive[array]
