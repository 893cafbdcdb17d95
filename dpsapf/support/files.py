"""Files that are never half-written, and their digests."""

import errno
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import stat
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpsapf.support.errors import Mistakes, UserError

LOG = logging.getLogger(__name__)
CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; the others wait. The lock file ``path`` stays, and a dead process frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            LOG.warning("%s: its file system has no locks (%s): let one process at a time fetch", path.parent, error.strerror)
        yield


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def synced(folder: Path) -> None:
    """Wait until a folder, and every file in it, is on the disk; folders in it are not looked into."""
    for path in (*(path for path in folder.iterdir() if path.is_file()), folder):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def copied(source: Path, target: Path) -> None:
    """Copy a file's contents, atomically."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def md5(file: typing.BinaryIO) -> str:
    """Return the MD5 hex digest of an open file, in which some owners publish their files' digests."""
    return hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def sha256(path: Path | str) -> str:
    """Return the SHA-256 hex digest of a file, or of a folder's sorted relative names and contents.

    Raises:
        UserErrors: something in the folder cannot be read (see `files_below`).
    """
    path, digest = Path(path), hashlib.sha256()
    files, mistakes = files_below(path) if path.is_dir() else ([path], Mistakes())
    mistakes.tell()
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path, skipped: Callable[[str], bool] = lambda name: False) -> tuple[list[Path], Mistakes]:
    """List the files in a folder and its folders; links to files and to folders are followed.

    Args:
        folder: where to begin.
        skipped: says of a name, without its folder, whether it is passed over with all that is in it.

    Returns:
        The files, sorted; and a mistake for each link that leads nowhere, or back to a folder that it is in, for each folder
        that cannot be read, and for all that is neither a file nor a folder.
    """
    files: list[Path] = []
    mistakes = Mistakes()
    _walk(folder, (_identity(folder.stat()),), skipped, files, mistakes)
    return sorted(files), mistakes


def _walk(folder: Path, around: tuple, skipped: Callable[[str], bool], files: list[Path], mistakes: Mistakes) -> None:
    try:
        entries = [entry for entry in os.scandir(folder) if not skipped(entry.name)]
    except OSError as error:
        mistakes.append(_unreadable(folder, error))
        return
    for path in (Path(entry.path) for entry in entries):
        try:
            found = path.stat()
        except OSError as error:
            mistakes.append(_broken_link(path, error) if path.is_symlink() else _unreadable(path, error))
            continue
        if stat.S_ISREG(found.st_mode):
            files.append(path)
        elif not stat.S_ISDIR(found.st_mode):
            mistakes.append(UserError(str(path), "neither a file nor a folder", "remove it"))
        elif _identity(found) in around:
            mistakes.append(UserError(str(path), "link in a circle", "leads to a folder that it is in: remove it"))
        else:
            _walk(path, (*around, _identity(found)), skipped, files, mistakes)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(str(path), "unreadable", f"give yourself the right to read it ({error.strerror})")


def _broken_link(path: Path, error: OSError) -> UserError:
    remedy = f"leads to {path.readlink()}, which cannot be reached ({error.strerror}): mend or remove the link"
    return UserError(str(path), "broken link", remedy)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` that takes its name only if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
