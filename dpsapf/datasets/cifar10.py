"""CIFAR-10 (Krizhevsky 2009) as published: ``cifar-10-python.tar.gz``, or the folder ``cifar-10-batches-py`` in it."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dpsapf.datasets.images import BATCH, Source, resize
from dpsapf.datasets.published import AGAIN, check_counts, check_labels, check_md5, in_use, published
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}  # of the files in the folder, as torchvision's loader has them
COUNTS = {"train": 50_000, "test": 10_000}
CLASSES = 10
MAX_FILE_BYTES = 64 * 2**20  # twice the size of a batch
ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
"""What an array that Python 2 pickled asks for, by module and name."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and Python's own values: whatever else a pickle asks for is refused before it runs."""

    def find_class(self, module: str, name: str) -> object:
        """Look up what a pickled array asks for.

        Raises:
            pickle.UnpicklingError: the pickle asks for something else.
        """
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may have arrays only")
        return super().find_class(module, name)


def cifar10(entry: DatasetEntry) -> Source:
    """Load 50,000 training and 10,000 test images of 32 x 32 pixels from the archive, in memory, or from the unpacked folder.

    Each batch is a pickle. Its digest is checked before it is read, and then it may hold arrays only.

    Returns:
        All images in the order of the batches, resized to the entry's resolution when they are needed.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    path = published(entry, f"cifar-10-python.tar.gz, or its folder {FOLDER},")
    files = _folder(path) if path.is_dir() else _archive(path)
    missing = sorted(MD5.keys() - files.keys())
    if missing:
        raise UserError("source", entry.source, f"lacks {', '.join(missing)}: {AGAIN}")
    batches = [read_batch(f"{path}/{name}", files[name], digest) for name, digest in MD5.items()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    told = ["test" if name == "test_batch" else "train" for name in MD5]
    splits = np.repeat(told, [len(batch_labels) for _, batch_labels in batches])
    check_counts(entry, splits, COUNTS)
    kept, splits = in_use(splits, entry)

    def decoded(threads: int) -> Iterator[np.ndarray]:
        return (resize(images[kept[start : start + BATCH]], entry.resolution) for start in range(0, len(kept), BATCH))

    return Source(labels[kept], splits, decoded)


def _folder(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in MD5 if (path / name).is_file()}


def _archive(path: Path) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path) as archive:
            for info in archive:
                folder, name = PurePosixPath(info.name).parts[-2:-1], PurePosixPath(info.name).name
                if info.isfile() and folder == (FOLDER,) and name in MD5 and info.size <= MAX_FILE_BYTES:
                    files[name] = archive.extractfile(info).read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError("source", str(path), f"must be cifar-10-python.tar.gz or its folder ({error}): {AGAIN}") from error
    return files


def read_batch(name: str, data: bytes, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: a dictionary with ``data``, uint8 [n, 3072], RGB plane after plane, and ``labels``.

    Args:
        name: of the file, for errors.
        data: its bytes.
        md5: its digest, without which it is not unpickled.

    Returns:
        Images uint8 [n, 32, 32, 3] in [0, 255], and labels int64 [n].

    Raises:
        UserError: the file has another digest, is no such batch, or has a label outside 0 to 9.
    """
    check_md5(name, io.BytesIO(data), md5)
    try:
        batch = ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        rows, labels = batch["data"], np.array(batch["labels"], np.int64)
        if rows.dtype != np.uint8 or rows.shape != (len(labels), 3072):
            raise ValueError(f"data of {rows.dtype} {rows.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(name, "no batch of CIFAR-10", f"{AGAIN} ({error})") from error
    check_labels(name, labels, CLASSES)
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
