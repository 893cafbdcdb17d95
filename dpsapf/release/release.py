"""release: publish a run as one folder, with its datasheet and its privacy statement."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dpsapf.experiment.records import Release as Released
from dpsapf.experiment.stages import Release
from dpsapf.privacy.compose import named_releases
from dpsapf.release.accounted import check_all_counted, named_by
from dpsapf.release.datasheet import WEIGHTS, datasheet
from dpsapf.release.found import Found, find
from dpsapf.release.images import write_images
from dpsapf.release.records import Counted, PrivacyRecord, Registered
from dpsapf.release.register import Register, held
from dpsapf.release.statement import certified, privacy_record, statement
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
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
    own = {(key, item): item for key, item in named_releases(found.ledger)}
    others = named_by(options.compose, found)
    if options.hyperparameters == "accounted" and not (others.keys() | own.keys()) - _of_run(found):
        remedy = "says that other runs chose them, and none is counted: name their records with --compose, or say paper or public"
        raise UserError("--hyperparameters", "accounted", remedy)
    path = options.register or Path(found.layout.register(found.ledger.run.dataset))
    with held(path) as register:
        counted = own | others | register.released(found.ledger.unit)
        check_all_counted(found, counted)
        line = _line(found, options, own | others)
        count = len({path.resolve() for path in options.compose})
        record = privacy_record(found, counted, register.earlier(line), count, options.hyperparameters)
        with whole(options.out) as folder:
            _write(folder, found, record, options.weights)
            register.add(line)
    LOG.info("%s: %s", options.out, _told(record, register))


def _of_run(found: Found) -> set[tuple[str, Released]]:
    """Name what the run itself released; not what its plan held of earlier runs."""
    return {(key, item) for key, item in named_releases(found.ledger)[len(found.ledger.prior) :]}


def _line(found: Found, options: Release, counted: dict[tuple[str, Released], Released]) -> Registered:
    ledger = found.ledger
    return Registered(
        run=ledger.run.id,
        dataset=ledger.run.dataset,
        unit=ledger.unit,
        delta=ledger.delta,
        hyperparameters=options.hyperparameters,
        images=found.images_digest,
        weights=ledger.weights_digest if options.weights else None,
        own=tuple(sorted(key for key, _ in _of_run(found))),
        counted=tuple(Counted(key=key, release=item) for key, item in counted),
        previous=None,
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


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` that takes its name only if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _told(record: PrivacyRecord, register: Register) -> str:
    total = certified(record.together)
    return f"epsilon {certified(record.this_release):.4g} at delta {record.delta:.3g}, all counted {total:.4g}; register {register.path}"
