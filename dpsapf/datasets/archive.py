"""Image archives whose bytes depend on their arrays alone."""

import zipfile
from pathlib import Path

import numpy as np

from dpsapf.records import atomic

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


def write_archive(path: Path | str, arrays: dict[str, np.ndarray]) -> None:
    """Write an ``.npz`` atomically, with equal bytes for equal arrays on every machine.

    ``np.savez`` stamps the current time into the file; here times and permissions are fixed, and
    nothing is compressed, because deflate's output differs between zlib versions.

    Args:
        path: the archive; ``np.load(path, allow_pickle=False)`` reads it.
        arrays: arrays by name, written in this order.
    """
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
