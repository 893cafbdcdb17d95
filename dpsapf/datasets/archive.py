"""Image archives whose bytes depend on their arrays alone."""

import zipfile
from pathlib import Path

import numpy as np

from dpsapf.support.arrays import Rows
from dpsapf.support.files import atomic


def write_archive(path: Path | str, arrays: dict[str, np.ndarray]) -> None:
    """Write an uncompressed ``.npz`` atomically; equal arrays give equal bytes.

    ``np.savez`` dates every member 1980-01-01, and without compression nothing depends on the zlib
    version, so the digest of an archive is stable.

    Args:
        path: the archive; ``np.load(path, allow_pickle=False)`` reads it.
        arrays: numeric arrays by name, written in this order.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def stored_rows(path: Path, name: str) -> Rows | np.ndarray:
    """Open an array of a ``.npz``: rows that are read when they are asked for, or all of it where it is compressed.

    Raises:
        KeyError: the archive has no such array.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = header(file)
            length = file.tell()
    if member.compress_type != zipfile.ZIP_STORED or in_columns or dtype.hasobject:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # the lengths of its name and extra field, in the local header
        name_length, extra_length = np.frombuffer(file.read(4), "<u2")
    start = member.header_offset + 30 + int(name_length) + int(extra_length)
    return Rows(path, start + length, dtype, shape)
