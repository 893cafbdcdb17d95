"""Files of JSON lines that are only ever appended to.

A line names the digest of the line before, so that one that was changed or taken away is found out.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpsapf.support.checked import Checked, parse, replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import as_json


class Line(Checked):
    """What every line of a journal has."""

    previous: str | None  # SHA-256 of the line before; null: it is the first


Kind = typing.TypeVar("Kind", bound=Line)


@dataclass(frozen=True)
class Told:
    """What errors of a journal say.

    Attributes:
        option: the option or variable that names the file.
        restore: what to do about a line that was changed or is damaged.
        cut_off: what to do about a last line that is not whole.
        unlocked: what may go wrong where the file cannot be locked.
    """

    option: str
    restore: str
    cut_off: str
    unlocked: str


class Journal(typing.Generic[Kind]):
    """An open journal that this process alone may write.

    Attributes:
        path: the file.
        lines: what it holds, oldest first.
    """

    def __init__(self, path: Path, file: typing.BinaryIO, kind: type[Kind], told: Told) -> None:
        """Read all lines.

        Raises:
            UserError: a line is damaged, changed, missing or cut off; names it.
        """
        self.path, self._file = path, file
        self.lines, self._last = _checked(path, file.read(), kind, told)

    def append(self, line: Kind) -> None:
        """Append a line, and see it on the disk."""
        line = replace(line, previous=self._last)
        row = json.dumps(as_json(line)).encode()
        self._file.write(row + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(line)
        self._last = hashlib.sha256(row).hexdigest()


def _checked(path: Path, text: bytes, kind: type[Kind], told: Told) -> tuple[list[Kind], str | None]:
    lines, last = [], None
    if text and not text.endswith(b"\n"):
        raise UserError(f"{path}: last line", text.splitlines()[-1][:40].decode(errors="replace"), f"was cut off; {told.cut_off}")
    for number, row in enumerate(text.splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            data = json.loads(row)
        except ValueError:
            raise UserError(where, row[:40].decode(errors="replace"), f"is damaged: {told.restore}") from None
        line = parse(kind, data, where)
        if line.previous != last:
            found = line.previous and line.previous[:12]
            raise UserError(f"{where}: previous", found, f"the line before was changed: {told.restore}")
        lines.append(line)
        last = hashlib.sha256(row).hexdigest()
    return lines, last


@contextlib.contextmanager
def held(path: Path, kind: type[Journal], line: type[Kind], told: Told, mode: int = 0o666) -> Iterator[Journal[Kind]]:
    """Open a journal, made if there is none, and keep others out until the block ends.

    Args:
        path: the file, in a folder that exists.
        kind: what to open it as.
        line: what its lines are.
        told: what errors say.
        mode: rights of a file that is made.

    Raises:
        UserError: its file system has no locks, or a line is damaged (see `Journal`).
    """
    with _locked(path, told, mode) as file:
        try:
            yield kind(path, file, line, told)
        finally:
            if path.exists() and path.stat().st_size == 0:  # a refusal leaves nothing
                path.unlink()


def _locked(path: Path, told: Told, mode: int) -> typing.BinaryIO:
    """Open a file that this process alone holds, and that still has its name."""
    while True:
        file = open(path, "a+b", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            raise UserError(told.option, str(path), f"cannot be locked ({error.strerror}), {told.unlocked}: move it") from error
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.seek(0)
            return file
        file.close()  # who held it left nothing, and removed it
