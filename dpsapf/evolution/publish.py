"""publish-population: write the images of an audited population, in the place of `dpsapf.sampling.sample`."""

import time

from dpsapf.experiment.records import DatasetRecord, Ledger
from dpsapf.experiment.stages import PublishPopulation
from dpsapf.sampling.sample import write_samples
from dpsapf.support.arrays import open_arrays
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record


def publish_population(options: PublishPopulation) -> None:
    """Write the evolved images with their labels, a contact sheet and what it cost.

    Raises:
        UserError: the population is not the one that the ledger's audit passed.
    """
    start = time.monotonic()
    ledger = read_record(options.ledger, Ledger)
    passed = ledger.digests.get("population")
    if passed is None or sha256(options.population) != passed:
        raise UserError("--population", str(options.population), f"the audit passed digest {passed}: audit again")
    arrays, _ = open_arrays(options.population)
    dataset = read_record(options.dataset, DatasetRecord)
    write_samples(arrays["images"][:], arrays["labels"][:], ledger, dataset, options, "cpu", time.monotonic() - start)
