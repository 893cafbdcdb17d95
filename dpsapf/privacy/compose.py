"""compose-releases: what several released runs on one dataset cost together; and earlier releases for a plan."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import Composition, Ledger, Release, Spend
from dpsapf.experiment.stages import ComposeReleases
from dpsapf.privacy.accounting import finite, spent_epsilon
from dpsapf.support.errors import UserError
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
Named = dict[tuple[str, Release], Release]
"""Releases, each by the digest of what was released and by itself."""


def compose_releases(options: ComposeReleases) -> None:
    """Write and print the composed epsilon of ledgers (and of refusals' spend records) of one dataset.

    Scores that runs share, by their digest, are one release.

    Raises:
        UserError: a record is of another dataset, or protects another unit than the first.
    """
    first = read_spent(options.records[0])
    releases = prior_releases(options.records, first.dataset_id, first.unit)
    spent = spent_epsilon(releases, options.delta)
    LOG.info(
        "%d releases at delta %g: %s", len(releases), options.delta, {name: round(value, 4) for name, value in spent.items()}
    )
    write_record(
        options.out,
        Composition(
            dataset_id=first.dataset_id,
            unit=first.unit,
            delta=options.delta,
            records=tuple(str(path) for path in options.records),
            releases=tuple(releases),
            spent_epsilon=finite(spent),
            provenance=provenance(),
        ),
    )


def prior_releases(paths: Sequence[Path], dataset_id: str, unit: Unit) -> list[Release]:
    """Collect what ledgers and spend records say was released of a dataset (see `named_prior`)."""
    return list(named_prior(paths, dataset_id, unit).values())


def named_prior(paths: Sequence[Path], dataset_id: str, unit: Unit) -> Named:
    """Collect what ledgers and spend records say was released of a dataset, by name; each distinct release once.

    A ledger's own earlier releases count, too.

    Raises:
        UserError: a record is of another dataset, or protects another unit.
    """
    found: Named = {}
    for path in paths:
        record = read_spent(path)
        if record.dataset_id != dataset_id:
            raise UserError(str(path), record.dataset_id[:12], f"is of another dataset than {dataset_id[:12]}: leave it out")
        if record.unit != unit:
            raise UserError(str(path), record.unit, f"protects another unit than {unit}: epsilons do not add up; leave it out")
        found |= {(key, release): release for key, release in named_releases(record)}
    return found


def read_spent(path: Path) -> Ledger | Spend:
    """Read a ledger, or the spend record of one release.

    Raises:
        UserError: the file is neither.
    """
    try:
        kind = Ledger if "releases" in json.loads(path.read_bytes()) else Spend
    except ValueError:
        kind = Ledger  # which tells the mistake
    return read_record(path, kind)


def named_releases(record: Ledger | Spend) -> list[tuple[str, Release]]:
    """Name each release by the digest of what was released, or by the record where nothing was."""
    if isinstance(record, Spend):
        return [(record.digest or record.private, record.release)]
    digests = {"saliency": record.digests.get("scores")} | dict.fromkeys(("dp-sgd", "pe-histogram"), record.released_digest)
    keys = record.prior_keys or [f"before {record.run.id}, {place}" for place in range(len(record.prior))]
    earlier = list(zip(keys, record.prior, strict=True))
    return earlier + [(digests[release.name], release) for release in record.releases]
