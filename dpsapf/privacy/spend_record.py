"""The record of spends: what was ever released of which private images, with noise of the operating system.

It lies outside every results folder, in a folder that only the owner can read: `folder` says where. ``spends.jsonl`` has a line
for each dataset, plan, release and word of the owner, oldest first; lines are only appended, and nothing here removes one.

The same images are known again under another salt, name, results folder or split: ``images/ID.npy`` has a keyed digest of each
training and validation image, uint8 [n, 16], sorted. Whoever lacks ``key`` learns nothing from it. Two datasets are of the same
images if they have one image in common, or their name.
"""

import contextlib
import os
import typing
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.privacy.compose import Named
from dpsapf.support import journal
from dpsapf.support.checked import Checked, gone
from dpsapf.support.errors import UserError

VARIABLE = "DPSAPF_SPENDS"
LINES = "spends.jsonl"
RESTORE = "restore the whole folder from a copy; without one, what was spent before is not known"
TOLD = journal.Told(
    option=VARIABLE,
    restore=RESTORE,
    cut_off="remove it: its line was not whole yet when its stage was killed, and nothing was released under it",
    unlocked="and two stages at once would not count each other",
)


class Known(Checked):
    """A dataset whose images the record knows."""

    kind: typing.Literal["dataset"] = "dataset"
    dataset_id: str
    name: str
    images: int  # how many have a digest; 0: the dataset is known by its name only
    same: tuple[str, ...]  # ids, known before, of datasets of the same images


class Planned(Checked):
    """A run was planned."""

    kind: typing.Literal["planned"] = "planned"
    run: str
    dataset_id: str
    lines: int  # how many lines of the record its plan counts: the first ones


class Spent(Checked):
    """One release that was made."""

    kind: typing.Literal["spent"] = "spent"
    subject: str  # id of the run, or of the scores that runs share
    dataset_id: str
    unit: Unit
    release: Release
    key: str  # SHA-256 of what was released, or of private.json where the release was refused
    refused: bool = False  # nothing came out, and epsilon is spent all the same
    reserved_as: None = gone(None)
    record: dict | None = None  # the stage's whole record; null: a ledger told of it


class Again(Checked):
    """The owner's word that a run, or scores, may be released once more."""

    kind: typing.Literal["again"] = "again"
    subject: str


class Entry(journal.Line):
    """A line of the record."""

    when: str  # UTC
    told: Known | Planned | Spent | Again = Field(discriminator="kind")


class Record(journal.Journal[Entry]):
    """The open record, which this process alone may write."""

    def add(self, told: Known | Planned | Spent | Again) -> None:
        """Append a line of now."""
        self.append(Entry(previous=None, when=datetime.now(UTC).isoformat(timespec="seconds"), told=told))

    def of(self, kind: type[Checked]) -> list:
        """Return what the lines of a kind tell, oldest first."""
        return [line.told for line in self.lines if isinstance(line.told, kind)]

    def knows(self, dataset_id: str) -> bool:
        """Tell whether a dataset is known."""
        return any(known.dataset_id == dataset_id for known in self.of(Known))

    def same_images(self, dataset_id: str) -> set[str]:
        """Return the ids of all datasets of the same images: of what they share with it, or with one that shares with it."""
        found, links = {dataset_id}, [{known.dataset_id, *known.same} for known in self.of(Known)]
        while near := [link for link in links if link & found and not link <= found]:
            found = found.union(*near)
        return found

    def spent(self, dataset_id: str, before: int | None = None) -> list[tuple[int, Spent]]:
        """Return what was spent on a dataset's images, each with its place among the lines; ``before``: in earlier lines only."""
        same = self.same_images(dataset_id)
        lines = enumerate(self.lines[:before])
        return [(place, line.told) for place, line in lines if isinstance(line.told, Spent) and line.told.dataset_id in same]

    def freed(self, subject: str) -> int:
        """Return the place of the owner's last word on a run or scores; -1: there is none."""
        places = [place for place, line in enumerate(self.lines) if line.told == Again(subject=subject)]
        return places[-1] if places else -1

    def live(self, subject: str, dataset_id: str) -> list[Spent]:
        """Return what a run or scores released of a dataset's images since the owner's last word."""
        freed = self.freed(subject)
        return [spent for place, spent in self.spent(dataset_id) if spent.subject == subject and place > freed]

    def planned(self, run: str, dataset_id: str) -> Planned | None:
        """Return a run's first plan since the owner's last word; None: it is not planned."""
        told = [line.told for line in self.lines[self.freed(run) + 1 :]]
        mine = [plan for plan in told if isinstance(plan, Planned) and (plan.run, plan.dataset_id) == (run, dataset_id)]
        return mine[0] if mine else None

    def priors(self, run: RunSpec, dataset_id: str, unit: Unit, told: Named) -> Named:
        """Name what was spent on a dataset's images before a run was first planned, see `dpsapf.privacy.spends.planning`."""
        own = {spent.key for spent in self._own_scores(run, dataset_id)} if run.selects else set()
        planned = self.planned(run.id, dataset_id)
        earlier = [spent for _, spent in self.spent(dataset_id, planned.lines if planned else None)]
        return {name: release for name, release in (told | named(earlier, unit)).items() if name[0] not in own}

    def _own_scores(self, run: RunSpec, dataset_id: str) -> list[Spent]:
        """Return the scores that a run will use, if they are released: the last ones of the same prepared dataset."""
        made = [spent for spent in self.live(run.scores_id, dataset_id) if spent.dataset_id == dataset_id and not spent.refused]
        return made[-1:]

    def described(self, spent: Spent) -> str:
        """Say what was spent, by what, and when."""
        when = next(line.when for line in self.lines if line.told == spent)
        what = "was refused, as a release of" if spent.refused else "released"
        return f"{spent.subject} {what} {spent.release.name} on {when}"


def folder() -> Path:
    """Return where the record lies: ``$DPSAPF_SPENDS``, or ``dpsapf/spends`` among the user's data.

    Raises:
        UserError: the variable is no absolute path, so that it would mean another folder elsewhere.
    """
    if given := os.environ.get(VARIABLE):
        if not Path(given).is_absolute():
            raise UserError(VARIABLE, given, "must be an absolute path, the same wherever a command is started")
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share") / "dpsapf" / "spends"


@contextlib.contextmanager
def opened() -> Iterator[Record]:
    """Open the record, made if there is none, and keep others out until the block ends.

    Raises:
        UserError: its folder cannot be made or written, or a line is damaged (see `dpsapf.support.journal`).
    """
    place = folder()
    with writable(place):
        (place / "images").mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
    with journal.held(place / LINES, Record, Entry, TOLD, mode=0o600) as book:
        yield book


@contextlib.contextmanager
def writable(place: Path) -> Iterator[None]:
    """Tell an error of the operating system as one of the record's folder.

    Raises:
        UserError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = f"cannot be made or written ({error.strerror}), and what is spent must stay on record: set the variable"
        raise UserError(
            VARIABLE, str(place), f"{remedy} {VARIABLE} to a folder of yours that stays, with room on its disk"
        ) from error


def named(spents: Iterable[Spent], unit: Unit) -> Named:
    """Name what was spent; each distinct release once.

    Raises:
        UserError: something protects another unit.
    """
    found: Named = {}
    for spent in spents:
        if spent.unit != unit:
            remedy = f"was released on these images, and this run protects one {unit}: epsilons do not add up; use the same unit"
            raise UserError(f"{folder()}: {spent.subject}: unit", spent.unit, remedy)
        found[spent.key, spent.release] = spent.release
    return found
