"""Spends that lie in a results folder and are not on record: those of an earlier version of this suite, or of another machine."""

import logging
from collections.abc import Iterator
from pathlib import Path

from dpsapf.experiment.records import DatasetRecord, Ledger, Spend
from dpsapf.privacy.compose import named_releases, read_spent
from dpsapf.privacy.spend_record import Record, Spent, opened
from dpsapf.privacy.spends import know_by_name, put, spent_of

LOG = logging.getLogger(__name__)
RECORDS = (
    "runs/*/ledger.json",
    "runs/*/ledgers/*.json",
    "runs/*/spend.json",
    "cache/scores/*/spend.json",
    "cache/scores/*/refused.json",
)


def spent_in(results: Path) -> Iterator[Path]:
    """List the records of everything that was released in a results folder."""
    for pattern in RECORDS:
        yield from sorted(results.glob(pattern))


def dataset_of(record: Ledger | Spend) -> str:
    """Return the name of the dataset that something was released of."""
    return record.run.dataset if isinstance(record, Ledger) else record.subject.split("--")[0]


def take_in(results: Path, dataset: DatasetRecord) -> None:
    """Put on record what a results folder says was released of a dataset's images.

    Args:
        results: the folder, with runs/ in it.
        dataset: one that is on record.

    Raises:
        UserError: a record in the folder is damaged.
    """
    with opened() as book:
        same, before = book.same_images(dataset.id), len(book.of(Spent))
        for path in spent_in(results):
            record = read_spent(path)
            if record.dataset_id in same or dataset_of(record) == dataset.name:
                _put_all(book, record)
        if found := len(book.of(Spent)) - before:
            LOG.warning("%s: %d releases of these images were not on record: now they are, in %s", results, found, book.path)


def _put_all(book: Record, record: Ledger | Spend) -> None:
    told = _of_ledger(record) if isinstance(record, Ledger) else [spent_of(record)]
    for spent in told:
        if spent.release.noise == "system":
            know_by_name(book, record.dataset_id, dataset_of(record))
            put(book, spent)


def _of_ledger(ledger: Ledger) -> Iterator[Spent]:
    """Yield what a ledger says was released, by its run and before."""
    subjects = {"saliency": ledger.run.scores_id}
    earlier = len(ledger.prior)
    for place, (key, release) in enumerate(named_releases(ledger)):
        subject = f"before {ledger.run.id}" if place < earlier else subjects.get(release.name, ledger.run.id)
        yield Spent(subject=subject, release=release, key=key, dataset_id=ledger.dataset_id, unit=ledger.unit)
