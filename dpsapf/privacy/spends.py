"""The record of spends: what was ever released of which private images, with noise of the operating system.

It lies outside every results folder, in a folder that only the owner can read: `folder` says where. ``spends.jsonl`` has a line
for each dataset, plan, release and word of the owner, oldest first; lines are only appended, and nothing here removes one.

The same images are known again under another salt, name, results folder or split: ``images/ID.npy`` has a keyed digest of each
training and validation image, uint8 [n, 16], sorted. Whoever lacks ``key`` learns nothing from it. Two datasets are of the same
images if they have one image in common, or their name.
"""

import contextlib
import hashlib
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import Field

from dpsapf.experiment.methods import Unit, method
from dpsapf.experiment.records import DatasetRecord, Ledger, Plan, Release, Spend
from dpsapf.experiment.runs import RunSpec
from dpsapf.privacy.compose import Named, reserved_name
from dpsapf.support import journal
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.records import as_json

VARIABLE = "DPSAPF_SPENDS"
DIGEST = 16  # bytes of an image's digest
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


class Spent(Checked):
    """One release that was made."""

    kind: typing.Literal["spent"] = "spent"
    subject: str  # id of the run, or of the scores that runs share
    dataset_id: str
    unit: Unit
    release: Release
    key: str  # SHA-256 of what was released, or of private.json where the release was refused
    refused: bool = False  # nothing came out, and epsilon is spent all the same
    reserved_as: str | None = None  # name under which the run's ledger counts it already
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

    def planned(self, run: str, dataset_id: str) -> int | None:
        """Return the place of a run's first plan since the owner's last word; None: it is not planned."""
        told = Planned(run=run, dataset_id=dataset_id)
        places = [place for place, line in enumerate(self.lines) if line.told == told and place > self.freed(run)]
        return places[0] if places else None

    def priors(self, run: RunSpec, dataset_id: str, unit: Unit) -> Named:
        """Name what was spent on a dataset's images before a run was first planned, see `priors`."""
        own = self._own_scores(run, dataset_id) if method(run.method).selects else []
        earlier = [spent for _, spent in self.spent(dataset_id, self.planned(run.id, dataset_id)) if spent not in own]
        return named(earlier, unit)

    def _own_scores(self, run: RunSpec, dataset_id: str) -> list[Spent]:
        """Return the scores that a run will use, if they are released: the last ones of the same prepared dataset."""
        made = [spent for spent in self.live(run.scores_id, dataset_id) if spent.dataset_id == dataset_id and not spent.refused]
        return made[-1:]

    def when(self, spent: Spent) -> str:
        """Say when something was spent."""
        return next(line.when for line in self.lines if line.told == spent)


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
    with _writable(place):
        (place / "images").mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
    with journal.held(place / "spends.jsonl", Record, Entry, TOLD, mode=0o600) as book:
        yield book


@contextlib.contextmanager
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = f"cannot be made or written ({error.strerror}), and what is spent must stay on record: set the variable"
        raise UserError(
            VARIABLE, str(place), f"{remedy} {VARIABLE} to a folder of yours that stays, with room on its disk"
        ) from error


def _key(book: Record) -> bytes:
    """Read the key of the digests, made where no digest was made yet."""
    path = book.path.with_name("key")
    if not path.exists() and not any(known.images for known in book.of(Known)):
        _write_private(path, os.urandom(32))
    if not path.exists() or path.stat().st_size != 32:
        raise UserError(str(path), None, f"is missing or damaged: {RESTORE}")
    return path.read_bytes()


def _write_private(path: Path, data: bytes) -> None:
    with _writable(path.parent), atomic(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(data)


def know(dataset: DatasetRecord, images: Callable[[], Iterable[np.ndarray]]) -> None:
    """Put a dataset on record, once.

    Args:
        dataset: its record.
        images: gives its training and validation images in batches, uint8 [b, H, W, 3]; called only where they are not known.

    Raises:
        UserError: the record cannot be kept (see `opened`), or parts of it are missing.
    """
    with opened() as book:
        if any(known.images for known in book.of(Known) if known.dataset_id == dataset.id):
            return
        key = _key(book)
    digests = keyed_digests(images(), key)
    with opened() as book:
        if not any(known.images for known in book.of(Known) if known.dataset_id == dataset.id):
            same = _same(book, dataset.id, dataset.name, digests)
            _save_digests(book, dataset.id, digests)
            book.add(Known(dataset_id=dataset.id, name=dataset.name, images=len(digests), same=same))


def know_by_name(book: Record, dataset_id: str, name: str) -> None:
    """Put a dataset on record whose images are not there to be looked at."""
    if not book.knows(dataset_id):
        book.add(Known(dataset_id=dataset_id, name=name, images=0, same=_same(book, dataset_id, name, None)))


def keyed_digests(images: Iterable[np.ndarray], key: bytes) -> np.ndarray:
    """Return the keyed BLAKE2b digest of each image's pixels, uint8 [n, 16], sorted, each once.

    Args:
        images: batches, uint8 [b, H, W, 3].
        key: 32 secret bytes; without it nobody can tell whether a digest is of an image that they have.
    """
    found = {
        hashlib.blake2b(np.ascontiguousarray(image), key=key, digest_size=DIGEST).digest() for batch in images for image in batch
    }
    return np.frombuffer(b"".join(sorted(found)), np.uint8).reshape(-1, DIGEST)


def _same(book: Record, dataset_id: str, name: str, digests: np.ndarray | None) -> tuple[str, ...]:
    mine = set() if digests is None else set(map(bytes, digests))
    others = {known.dataset_id: known for known in book.of(Known) if known.dataset_id != dataset_id}
    return tuple(
        other for other, known in others.items() if known.name == name or (known.images and mine & _digests(book, other))
    )


def _digests(book: Record, dataset_id: str) -> set[bytes]:
    path = _digests_path(book, dataset_id)
    try:
        return set(map(bytes, np.load(path, allow_pickle=False)))
    except (OSError, ValueError) as error:
        raise UserError(str(path), None, f"is missing or damaged: {RESTORE}") from error


def _digests_path(book: Record, dataset_id: str) -> Path:
    return book.path.parent / "images" / f"{dataset_id}.npy"


def _save_digests(book: Record, dataset_id: str, digests: np.ndarray) -> None:
    path = _digests_path(book, dataset_id)
    with _writable(path.parent), atomic(path) as temporary:
        temporary.touch(mode=0o600)
        np.save(temporary, digests)


def record(spend: Spend, ledger: Ledger | None = None) -> None:
    """Put a release on record, once; one without noise, or with noise from a seed, has no place there.

    Call it before the released file takes its name: what was released is then on record, whatever happens next.

    Args:
        spend: the stage's record.
        ledger: that reserved the release; for counts only.

    Raises:
        UserError: the dataset is not on record; or the run, or the scores, were released meanwhile: then nothing may come out.
    """
    if spend.release.noise != "system":
        return
    with opened() as book:
        _check_known(book, spend.dataset_id)
        spent = spent_of(spend, ledger)
        others = [known.key for known in book.live(spend.subject, spend.dataset_id) if known.release.name == spent.release.name]
        if others and spent.key not in others:
            told = "was released meanwhile by another process; what this one made is not on record and must not be used"
            raise UserError(str(book.path), spend.subject, f"{told}: start one Snakemake on these images at a time")
        put(book, spent)


def spent_of(spend: Spend, ledger: Ledger | None = None) -> Spent:
    """Say of a stage's record what the record of spends keeps."""
    return Spent(
        subject=spend.subject,
        dataset_id=spend.dataset_id,
        unit=spend.unit,
        release=spend.release,
        key=spend.digest or spend.private,
        refused=not spend.digest,
        reserved_as=reserved_name(ledger) if ledger and spend.release in ledger.reserved else None,
        record=as_json(spend),
    )


def put(book: Record, spent: Spent) -> None:
    """Append what was spent, if it is not on record."""
    if not any((known.key, known.release) == (spent.key, spent.release) for known in book.of(Spent)):
        book.add(spent)


def _check_known(book: Record, dataset_id: str) -> None:
    if not book.knows(dataset_id):
        remedy = "does not know these images: plan the run here first (plan-privacy), under the same"
        raise UserError(str(book.path), dataset_id[:12], f"{remedy} {VARIABLE}")


def released(subject: str, dataset_id: str) -> list[Spent]:
    """Return what a run or scores released of a dataset's images, and no later word of the owner has set free.

    Args:
        subject: id of the run (its training, votes, counts), or of the scores that runs share.
        dataset_id: of the images that are about to be read.

    Raises:
        UserError: the dataset is not on record.
    """
    with opened() as book:
        _check_known(book, dataset_id)
        return book.live(subject, dataset_id)


def priors(run: RunSpec, dataset_id: str, unit: Unit) -> Named:
    """Name what was spent on a dataset's images before a run was first planned.

    Left out are the scores that the run uses itself, where they were released of the same prepared dataset: its own plan has
    them. Nothing is written. Where the dataset is not on record, there is nothing to name.

    Raises:
        UserError: something was spent on another unit than ``unit``.
    """
    if not (folder() / "spends.jsonl").exists():
        return {}
    with opened() as book:
        return book.priors(run, dataset_id, unit)


def plan(run: RunSpec, dataset_id: str, unit: Unit) -> Named:
    """Put on record that a run is planned, and return its `priors`.

    Raises:
        UserError: as `priors`, or the dataset is not on record.
    """
    with opened() as book:
        _check_known(book, dataset_id)
        found = book.priors(run, dataset_id, unit)
        if book.planned(run.id, dataset_id) is None:
            book.add(Planned(run=run.id, dataset_id=dataset_id))
        return found


def check_planned(made: Plan) -> None:
    """Check that a plan still counts everything that was spent before it; call it before a run releases anything.

    Raises:
        UserError: the owner has set the run or its scores free since, and the plan does not count what they released.
    """
    if made.noise != "system" or made.target_epsilon is None:
        return
    with opened() as book:
        _check_known(book, made.dataset_id)
        counted = set(zip(made.prior_keys, made.prior, strict=True))
        missing = book.priors(made.run, made.dataset_id, made.unit).keys() - counted
        if book.planned(made.run.id, made.dataset_id) is None or missing:
            remedy = "was planned before dpsapf spend-again, and does not count what was spent: delete it, and plan the run again"
            raise UserError("--plan", made.run.id, remedy)


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
