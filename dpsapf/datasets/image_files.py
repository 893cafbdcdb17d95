"""PNG and JPEG files in a folder or a .zip: listed, read in memory, decoded on several threads."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from dpsapf.datasets.images import BATCH, Source, check_side
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError

MODES = {1: "L", 3: "RGB"}
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # 8 bits a channel or fewer; alpha is dropped
MAX_FILE_BYTES = 64 * 2**20  # a .zip entry that unpacks to more is refused unread: no such image needs it
MAX_SIDE = 8192  # pixels; a larger image is refused undecoded
MAX_ENLARGEMENT = 2  # an image needs at least 1/2 of the resolution on its shorter side (CelebA: 178 for 256)

Read = Callable[[str], bytes]


def files_source(
    path: Path,
    names: list[str],
    labels: np.ndarray,
    splits: np.ndarray,
    entry: DatasetEntry,
    users: np.ndarray | None = None,
    *,
    exact: bool = False,
) -> Source:
    """Make a source of image files, which are read and decoded when they are needed.

    Args:
        path: a folder or a .zip.
        names: of the files in it, ``/``-separated, N of them.
        labels: int64 [N].
        splits: str [N].
        entry: says what images must be like, see `decode`.
        users: whom each image is of, str [N]; None if that is not told.
        exact: as of `decode`.
    """
    return Source(labels, splits, partial(_decoded, path, names, entry, exact), users)


def listed(path: Path) -> list[str]:
    """List the files in a folder or a .zip, ``/``-separated.

    Raises:
        UserError: the .zip is unreadable, or has an entry that leaves its folder, comes twice or is too large.
    """
    if path.is_dir():
        return [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    with _zip(path) as archive:
        names: dict[str, None] = {}
        for info in archive.infolist():
            _check_member(f"{path}: {info.filename}", info, names)
            if not info.is_dir():
                names[info.filename] = None
    return list(names)


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError("source", str(path), f"must be a folder or a readable .zip ({error})") from error
    with archive:
        yield archive


def _check_member(where: str, info: zipfile.ZipInfo, known: dict[str, None]) -> None:
    pure = PurePosixPath(info.filename)
    if pure.is_absolute() or ".." in pure.parts or "\\" in info.filename or ":" in info.filename:
        raise UserError(where, info.filename, "leaves its folder: entries of a .zip need relative names without .. \\ or :")
    if info.filename in known:
        raise UserError(where, "twice in the .zip", "give every file its own name")
    if info.file_size > MAX_FILE_BYTES:
        raise UserError(where, f"{info.file_size} bytes unpacked", f"must be at most {MAX_FILE_BYTES}")


@contextmanager
def _reading(path: Path) -> Iterator[Read]:
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    with _zip(path) as archive:
        yield archive.read


def _decoded(path: Path, names: list[str], entry: DatasetEntry, exact: bool, threads: int) -> Iterator[np.ndarray]:
    def one(name: str) -> np.ndarray:
        where = f"{path}/{name}"
        return decode(_read(read, name, where), where, entry, exact=exact)

    with _reading(path) as read, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), BATCH):
            yield np.stack(list(pool.map(one, names[start : start + BATCH])))


def _read(read: Read, name: str, where: str) -> bytes:
    try:
        return read(name)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
        raise UserError(where, "unreadable", f"replace or remove it ({error})") from error


def decode(data: bytes, where: str, entry: DatasetEntry, *, exact: bool = False) -> np.ndarray:
    """Decode one PNG or JPEG file, crop it to its central square and resize it (Lanczos).

    Args:
        data: the file's bytes.
        where: the file's name, for errors.
        entry: gives ``resolution`` in pixels and ``channels``; its ``convert`` says whether other modes are converted.
        exact: refuse an image that would have to be cropped or resized.

    Returns:
        uint8 [resolution, resolution, channels] in [0, 255].

    Raises:
        UserError: not an image, too small, too large, or of another mode than ``channels`` says.
    """
    with _undecodable(where):
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    if exact:
        check_side(where, image.size, entry.resolution)
    _check_header(image, where, entry)
    with _undecodable(where):
        image.load()
    square = _central_square(image.convert(MODES[entry.channels])).resize(
        (entry.resolution, entry.resolution), Image.Resampling.LANCZOS
    )
    return np.asarray(square).reshape(entry.resolution, entry.resolution, entry.channels)


def _central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@contextmanager
def _undecodable(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a PNG or JPEG" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(where, "undecodable", f"replace or remove this image ({reason})") from error


def _check_header(image: Image.Image, where: str, entry: DatasetEntry) -> None:
    least = -(-entry.resolution // MAX_ENLARGEMENT)
    modes = CONVERTIBLE if entry.convert else (MODES[entry.channels],)
    if image.mode not in modes:
        remedy = f"every file must be of mode {' or '.join(modes)} for channels = {entry.channels}; convert it"
        raise UserError(where, f"mode {image.mode}", remedy if entry.convert else f"{remedy}, or set convert: true or channels")
    if min(image.size) < least or max(image.size) > MAX_SIDE:
        remedy = f"sides must be {least} to {MAX_SIDE} pixels for resolution {entry.resolution}"
        raise UserError(where, f"{image.width} x {image.height}", remedy)
