"""What else was learnt from the private images, and must be counted before a run is published.

Whoever trained several runs on the same images may have chosen this one, or its settings, by what the others showed. So every
release of these images that is on record counts (`dpsapf.privacy.spends`), and every one that lies in the results folder must be
in the total: as a part of the run, on record, by ``--compose``, or in the register.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from dpsapf.experiment.records import Ledger, Release, Spend
from dpsapf.privacy import spend_record
from dpsapf.privacy.compose import named_releases, read_spent
from dpsapf.privacy.spends import spent_on
from dpsapf.privacy.spends_found import dataset_of, spent_in
from dpsapf.release.found import Found
from dpsapf.support.errors import UserError

LOG = logging.getLogger(__name__)
Named = dict[tuple[str, Release], None]  # releases, each by the digest of what was released


def named_by(paths: Sequence[Path], found: Found) -> Named:
    """Return what other runs on the same images released, by name.

    Raises:
        UserError: a record is of another dataset, protects another unit, or is of a release without a guarantee.
    """
    named: Named = {}
    for path in paths:
        record = read_spent(path)
        if not _same_images(record, found.ledger):
            raise UserError(f"--compose: {path}", dataset_of(record), f"is not of {found.ledger.run.dataset}: leave it out")
        if record.unit != found.ledger.unit:
            remedy = f"protects another unit than this run's {found.ledger.unit}: epsilons do not add up"
            raise UserError(f"--compose: {path}", record.unit, f"{remedy}; train with one unit")
        for key, release in named_releases(record):
            check_counts(path, release)
            named[key, release] = None
    return named


def on_record(found: Found) -> Named:
    """Return what the record of spends has of the same images, published or not; say so if it does not know them.

    Raises:
        UserError: something was spent on another unit.
    """
    ledger = found.ledger
    spent = spent_on(ledger.dataset_id, ledger.run.dataset, ledger.unit)
    if spent is None and ledger.releases:
        place, variable = spend_record.folder(), spend_record.VARIABLE
        LOG.warning("%s does not know these images: the results folder, the register and --compose alone are counted", place)
        LOG.warning(
            "if they were trained on elsewhere, publish there, or copy that record here and name its folder in %s", variable
        )
    return dict.fromkeys(spent or {})


def check_counts(path: Path, release: Release) -> None:
    """Check that a release has a guarantee that can be added up.

    Raises:
        UserError: it was exact, or its noise came from a seed.
    """
    if release.mechanism == "none" or release.noise == "seed":
        told = "without noise" if release.mechanism == "none" else "with noise from a seed"
        remedy = "cannot be counted, and may have shaped this run: train what you publish in a results folder without such"
        raise UserError(str(path), told, remedy)


def check_all_counted(found: Found, counted: Named) -> None:
    """Check that every release of the same images in the results folder is counted.

    Raises:
        UserError: names the first that is not, and how to count it.
    """
    for path in spent_in(Path(found.layout.root)):
        record = read_spent(path)
        if not _same_images(record, found.ledger) or (isinstance(record, Ledger) and record.run == found.ledger.run):
            continue
        for key, release in named_releases(record):
            if (key, release) not in counted:
                check_counts(path, release)
                remedy = "is of the same images and may have shaped this run, but is not counted: add it to --compose"
                raise UserError(str(path), release.name, remedy)


def _same_images(record: Ledger | Spend, ledger: Ledger) -> bool:
    return record.dataset_id == ledger.dataset_id or dataset_of(record) == ledger.run.dataset
