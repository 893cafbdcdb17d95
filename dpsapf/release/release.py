"""release: publish a run as one folder, with its datasheet and its privacy statement."""

import json
import logging
import os
import shutil
from pathlib import Path

from dpsapf.experiment.stages import Release
from dpsapf.privacy.compose import named_releases
from dpsapf.release.accounted import Named, check_all_counted, named_by, on_record
from dpsapf.release.datasheet import WEIGHTS, datasheet
from dpsapf.release.found import Found, find
from dpsapf.release.images import write_images
from dpsapf.release.records import Counted, PrivacyRecord, Registered
from dpsapf.release.register import Register, held
from dpsapf.release.statement import certified, privacy_record, statement
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256, whole
from dpsapf.support.records import as_json

LOG = logging.getLogger(__name__)
SUMS = "SHA256SUMS"


def release(options: Release) -> None:
    """Write the folder, and a line of the register; neither if anything is wrong.

    The folder has images (PNG, .npz), README.md, STATEMENT.md, privacy.json, the weights if asked for, and SHA256SUMS. The
    same run and register give the same bytes.

    Raises:
        UserError: the folder exists; the run may not be published (see `dpsapf.release.found`); something that was learnt
            from the same images is not counted (see `dpsapf.release.accounted`); the register is damaged.
    """
    if os.path.lexists(options.out):
        raise UserError("--out", str(options.out), "exists: name a folder that does not, or remove it")
    found = find(options)
    if options.weights and found.weights is None:
        raise UserError("--weights", True, f"method {found.ledger.run.method} trains none: leave it out")
    brought = named_by([Path(found.layout.run(found.ledger.run.id, "ledger.json")), *options.compose], found) | on_record(found)
    line = _line(found, options, brought)
    path = options.register or Path(found.layout.register(found.ledger.run.dataset))
    with held(path) as register:
        record = _counted(found, register, line, brought)
        with whole(options.out) as folder:
            _write(folder, found, record, options.weights)
            register.add(line)
    alone, total = certified(record.this_release), certified(record.together)
    LOG.info("%s: epsilon %.4g alone, %.4g with all that is counted, at delta %.3g", options.out, alone, total, record.delta)
    LOG.info("counted in %s: keep this file, later releases need it", path)


def _line(found: Found, options: Release, brought: Named) -> Registered:
    ledger = found.ledger
    return Registered(
        run=ledger.run.id,
        dataset=ledger.run.dataset,
        unit=ledger.unit,
        delta=ledger.delta,
        hyperparameters=options.hyperparameters,
        images=found.images_digest,
        weights=ledger.weights_digest if options.weights else None,
        own=tuple(sorted(key for key, _ in named_releases(ledger)[len(ledger.prior) :])),
        counted=tuple(Counted(key=key, release=release) for key, release in brought),
        previous=None,
    )


def _counted(found: Found, register: Register, line: Registered, brought: Named) -> PrivacyRecord:
    """Count the run, what it brings with it, and what the register holds; refuse if anything is left out."""
    registered = register.released(line.unit)
    everything = brought | registered
    own = dict.fromkeys(named_releases(found.ledger)[len(found.ledger.prior) :])
    if line.hyperparameters == "accounted" and not everything.keys() - own.keys():
        remedy = "says that other runs chose them, and none is counted: name their records with --compose, or say paper or public"
        raise UserError("--hyperparameters", "accounted", remedy)
    check_all_counted(found, everything)
    earlier = register.of_others(line)
    known = {(item.key, item.release) for other in earlier for item in other.counted}
    unregistered = len(everything.keys() - own.keys() - known)
    return privacy_record(
        found, everything, len({(other.run, other.own) for other in earlier}), unregistered, line.hyperparameters
    )


def _write(folder: Path, found: Found, record: PrivacyRecord, weights: bool) -> None:
    classes = write_images(folder, found)
    digest = None
    if weights:
        shutil.copyfile(found.weights, folder / WEIGHTS)
        digest = found.ledger.weights_digest
    texts = {
        "README.md": datasheet(found, classes, record, digest),
        "STATEMENT.md": statement(record, found.ledger.run.method),
        "privacy.json": json.dumps(as_json(record), indent=2) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
