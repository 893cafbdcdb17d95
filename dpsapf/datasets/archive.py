"""Image archives whose bytes depend on their arrays alone."""

from pathlib import Path

import numpy as np

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
