"""The register of what was published of one collection of private images: releases.jsonl, a line each, only ever appended to.

Every line counts against the same images, however they were prepared: whoever prepares them anew protects the same ones.
A line names the digest of the line before, so that one that was changed or taken away is found out.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import Release
from dpsapf.release.records import Registered
from dpsapf.support.checked import parse, replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import as_json

RESTORE = "restore the register from a copy; without one, what was published before is not known"


class Register:
    """An open register that this process alone may write.

    Attributes:
        path: the file.
        lines: what it holds, oldest first.
    """

    def __init__(self, path: Path, file: typing.BinaryIO) -> None:
        """Read all lines.

        Raises:
            UserError: a line is damaged, changed, missing or cut off; names it.
        """
        self.path, self._file = path, file
        self.lines, self._last = _checked(path, file.read())

    def released(self, unit: Unit) -> dict[tuple[str, Release], None]:
        """Return all that was counted in any line, each distinct release once.

        Raises:
            UserError: a line protects another unit.
        """
        for number, line in enumerate(self.lines, 1):
            if line.unit != unit:
                remedy = f"this run protects one {unit}: epsilons of different units do not add up; train it with the same unit"
                raise UserError(f"{self.path}: line {number}: unit", line.unit, remedy)
        return {(item.key, item.release): None for line in self.lines for item in line.counted}

    def of_others(self, line: Registered) -> list[Registered]:
        """Return the lines of other runs than a line's."""
        return [other for other in self.lines if (other.run, other.own) != (line.run, line.own)]

    def add(self, line: Registered) -> None:
        """Append a line, and see it on the disk; a line that is there already stays alone."""
        if line in [replace(other, previous=line.previous) for other in self.lines]:
            return
        text = json.dumps(as_json(replace(line, previous=self._last))).encode() + b"\n"
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())


def _checked(path: Path, text: bytes) -> tuple[list[Registered], str | None]:
    lines, last = [], None
    if text and not text.endswith(b"\n"):
        remedy = "was cut off; remove it if its release was not published, else " + RESTORE
        raise UserError(f"{path}: last line", text.splitlines()[-1][:40].decode(errors="replace"), remedy)
    for number, row in enumerate(text.splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            data = json.loads(row)
        except ValueError:
            raise UserError(where, row[:40].decode(errors="replace"), f"is damaged: {RESTORE}") from None
        line = parse(Registered, data, where)
        if line.previous != last:
            raise UserError(f"{where}: previous", line.previous and line.previous[:12], f"the line before was changed: {RESTORE}")
        lines.append(line)
        last = hashlib.sha256(row).hexdigest()
    return lines, last


@contextlib.contextmanager
def held(path: Path) -> Iterator[Register]:
    """Open a register, made if there is none, and keep others out until the block ends.

    Raises:
        UserError: its folder does not exist, its file system has no locks, or a line is damaged (see `Register`).
    """
    if not path.parent.is_dir():
        raise UserError("--register", str(path), "its folder does not exist: make it, or name another file")
    with _locked(path) as file:
        try:
            yield Register(path, file)
        finally:
            if path.exists() and path.stat().st_size == 0:  # a refusal leaves nothing
                path.unlink()


def _locked(path: Path) -> typing.BinaryIO:
    """Open a file that this process alone holds, and that still has its name."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            file.close()
            remedy = f"cannot be locked ({error.strerror}), and two releases at once would not count each other: move it"
            raise UserError("--register", str(path), remedy) from error
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            file.seek(0)
            return file
        file.close()  # who held it left nothing, and removed it
