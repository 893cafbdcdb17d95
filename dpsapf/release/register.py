"""The register of what was published of one collection of private images: releases.jsonl, a line each, only ever appended to.

Every line counts against the same images, however they were prepared: whoever prepares them anew protects the same ones.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import Release
from dpsapf.release.records import Registered
from dpsapf.support import journal
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

RESTORE = "restore the register from a copy; without one, what was published before is not known"
TOLD = journal.Told(
    option="--register",
    restore=RESTORE,
    cut_off="remove it if its release was not published, else " + RESTORE,
    unlocked="and two releases at once would not count each other",
)


class Register(journal.Journal[Registered]):
    """An open register that this process alone may write."""

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
        """Append a line; a line that is there already stays alone."""
        if line not in [replace(other, previous=line.previous) for other in self.lines]:
            self.append(line)


@contextlib.contextmanager
def held(path: Path) -> Iterator[Register]:
    """Open a register, made if there is none, and keep others out until the block ends.

    Raises:
        UserError: its folder does not exist, its file system has no locks, or a line is damaged (see `dpsapf.support.journal`).
    """
    if not path.parent.is_dir():
        raise UserError("--register", str(path), "its folder does not exist: make it, or name another file")
    with journal.held(path, Register, Registered, TOLD) as register:
        yield register
