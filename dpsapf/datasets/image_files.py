"""PNG and JPEG files in a folder or a .zip: listed, read in memory, decoded on several threads."""

import stat
import typing
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from dpsapf.datasets.decoding import decode
from dpsapf.datasets.formats import named
from dpsapf.datasets.images import BATCH, Source
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import Mistakes, UserError
from dpsapf.support.files import files_below

MAX_FILE_BYTES = 64 * 2**20  # a .zip entry that unpacks to more is refused unread: no such image needs it

Read = Callable[[str], bytes]


class Listing(typing.NamedTuple):
    """What is in a folder or a .zip: names of files, ``/``-separated, and what cannot be one of them."""

    names: list[str]
    mistakes: Mistakes


def files_source(
    path: Path,
    names: list[str],
    labels: np.ndarray,
    splits: np.ndarray,
    entry: DatasetEntry,
    users: np.ndarray | None = None,
    *,
    mistakes: Sequence[UserError] = (),
    exact: bool = False,
    on_white: bool = True,
) -> Source:
    """Make a source of image files, which are read and decoded when they are needed.

    Args:
        path: a folder or a .zip.
        names: of the files in it, ``/``-separated, N of them.
        labels: int64 [N].
        splits: str [N].
        entry: says what images must be like, see `decode`.
        users: whom each image is of, str [N]; None if that is not told.
        mistakes: what is already known to be wrong with the source.
        exact: as of `decode`.
        on_white: as of `decode`.
    """
    one = partial(decode, entry=entry, exact=exact, on_white=on_white)
    return Source(labels, splits, partial(_decoded, path, names, one), users, names, tuple(mistakes))


def listed(path: Path) -> Listing:
    """List the files in a folder or a .zip, hidden ones aside. Links in a folder are followed, to files and to folders.

    The mistakes are links that lead nowhere or in a circle, and entries of a .zip that leave its folder, come twice, are links
    or are too large.

    Raises:
        UserError: the .zip is unreadable.
    """
    if path.is_dir():
        files, mistakes = files_below(path, _hidden)
        return Listing([file.relative_to(path).as_posix() for file in files], mistakes)
    names, mistakes = {}, Mistakes()
    with _zip(path) as archive:
        for info in archive.infolist():
            with mistakes.noting():
                _check_member(f"{path}: {info.filename}", info, names)
                if not (info.is_dir() or any(map(_hidden, PurePosixPath(info.filename).parts))):
                    names[info.filename] = None
    return Listing(list(names), mistakes)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = _opened(path)
    except (OSError, zipfile.BadZipFile) as error:
        if path.suffix.lower() != ".zip" and (known := named(path.name)):
            raise UserError("source", str(path), f"{known.name} {known.remedy}") from error
        raise UserError("source", str(path), f"must be a folder or a readable .zip ({error})") from error
    with archive:
        yield archive


def _opened(path: Path) -> zipfile.ZipFile:
    """Open a .zip; names without a mark of their encoding are UTF-8, as macOS writes them, or else the format's own."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


def _check_member(where: str, info: zipfile.ZipInfo, known: dict[str, None]) -> None:
    pure = PurePosixPath(info.filename)
    if pure.is_absolute() or ".." in pure.parts or "\\" in info.filename or ":" in info.filename:
        raise UserError(where, info.filename, "leaves its folder: entries of a .zip need relative names without .. \\ or :")
    if info.filename in known:
        raise UserError(where, "twice in the .zip", "give every file its own name")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(where, "a link", "links in a .zip are not followed: pack the files that they lead to (zip without -y)")
    if info.file_size > MAX_FILE_BYTES:
        raise UserError(where, f"{info.file_size} bytes unpacked", f"must be at most {MAX_FILE_BYTES}")


@contextmanager
def _reading(path: Path) -> Iterator[Read]:
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    with _zip(path) as archive:
        yield archive.read


def _decoded(path: Path, names: list[str], decode_one: Callable[[bytes, str], np.ndarray], threads: int) -> Iterator[np.ndarray]:
    """Decode batch after batch. After a faulty image nothing more is given, but all others are looked at, too.

    Raises:
        UserErrors: at the end, if there are faulty images: a line for each.
    """
    mistakes = Mistakes()

    def one(name: str) -> np.ndarray | None:
        where = f"{path}/{name}"
        with mistakes.noting():
            return decode_one(_read(read, name, where), where)

    with _reading(path) as read, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), BATCH):
            images = list(pool.map(one, names[start : start + BATCH]))
            if not mistakes:
                yield np.stack(images)
    mistakes.sort(key=lambda mistake: mistake.key)  # threads end in any order
    mistakes.tell()


def _read(read: Read, name: str, where: str) -> bytes:
    try:
        return read(name)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
        raise UserError(where, f"unreadable ({error})", "replace or remove it") from error
