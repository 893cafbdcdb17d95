"""spend-again: the owner's word that a run, or scores, may be released a second time."""

import logging

from dpsapf.experiment.records import Release
from dpsapf.experiment.stages import SpendAgain
from dpsapf.privacy.spend_record import Again, Record, Spent, opened
from dpsapf.support.errors import UserError, one_of

LOG = logging.getLogger(__name__)


def spend_again(options: SpendAgain) -> None:
    """Set a run, or scores that runs share, free for one more release; say what they have spent, which stays on record.

    Raises:
        UserError: nothing that they released is on record, or they are free already; names those that are not.
    """
    with opened() as book:
        standing = _standing(book)
        if options.run not in standing:
            known = one_of(options.run, sorted(standing)) if standing else f"nothing is, in {book.path}"
            raise UserError("--run", options.run, f"is not on record, or is set free already: {known}")
        for spent in standing[options.run]:
            LOG.info("%s: %s", book.described(spent), _told(spent.release))
        book.add(Again(subject=options.run))
        LOG.info("%s may be released once more; every later plan and release on these images counts what it spent", options.run)
        LOG.info("that stays on record in %s; if its old files are still there, delete them, plan.json too", book.path)


def _standing(book: Record) -> dict[str, list[Spent]]:
    """Return what each run, and the scores of each, released since the owner's last word on them."""
    standing: dict[str, list[Spent]] = {}
    for place, line in enumerate(book.lines):
        if isinstance(line.told, Spent) and place > book.freed(line.told.subject):
            standing.setdefault(line.told.subject, []).append(line.told)
    return standing


def _told(release: Release) -> str:
    if release.mechanism == "gaussian":
        return (
            f"noise multiplier {release.noise_multiplier:.4g}, {release.steps} steps at sampling rate {release.sampling_rate:.3g}"
        )
    return f"{release.mechanism}, epsilon {release.epsilon:.4g}, delta {release.delta:.3g}"
