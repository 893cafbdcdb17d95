"""What stages ask of the record of spends (see `dpsapf.privacy.spend_record`), and put there."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from dpsapf.experiment.methods import Unit
from dpsapf.experiment.records import DatasetRecord, Plan, Spend
from dpsapf.experiment.runs import RunSpec
from dpsapf.privacy.compose import Named
from dpsapf.privacy.spend_record import LINES, RESTORE, VARIABLE, Known, Planned, Record, Spent, folder, named, opened, writable
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.records import as_json

LOG = logging.getLogger(__name__)
DIGEST = 16  # bytes of an image's digest


def _key(book: Record) -> bytes:
    """Read the key of the digests, made where no digest was made yet."""
    path = book.path.with_name("key")
    if not path.exists() and not any(known.images for known in book.of(Known)):
        _write_private(path, os.urandom(32))
    if not path.exists() or path.stat().st_size != 32:
        raise UserError(str(path), None, f"is missing or damaged: {RESTORE}")
    return path.read_bytes()


def _write_private(path: Path, data: bytes) -> None:
    with writable(path.parent), atomic(path) as temporary:
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
    with writable(path.parent), atomic(path) as temporary:
        temporary.touch(mode=0o600)
        np.save(temporary, digests)


def record(spend: Spend) -> None:
    """Put a release on record, once; one without noise, or with noise from a seed, has no place there.

    Call it before the released file takes its name: what was released is then on record, whatever happens next.

    Args:
        spend: the stage's record.

    Raises:
        UserError: the dataset is not on record; or the run, or the scores, were released meanwhile: then nothing may come out.
    """
    if spend.release.noise != "system":
        return
    with opened() as book:
        _check_known(book, spend.dataset_id)
        spent = spent_of(spend)
        others = [known.key for known in book.live(spend.subject, spend.dataset_id) if known.release.name == spent.release.name]
        if others and spent.key not in others:
            told = "was released meanwhile by another process; what this one made is not on record and must not be used"
            raise UserError(str(book.path), spend.subject, f"{told}: start one Snakemake on these images at a time")
        put(book, spent)


def spent_of(spend: Spend) -> Spent:
    """Say of a stage's record what the record of spends keeps."""
    return Spent(
        subject=spend.subject,
        dataset_id=spend.dataset_id,
        unit=spend.unit,
        release=spend.release,
        key=spend.digest or spend.private,
        refused=not spend.digest,
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
        subject: id of the run (its training or votes), or of the scores that runs share.
        dataset_id: of the images that are about to be read.

    Raises:
        UserError: the dataset is not on record.
    """
    with opened() as book:
        _check_known(book, dataset_id)
        return book.live(subject, dataset_id)


def priors(run: RunSpec, dataset_id: str, unit: Unit, told: Named) -> Named:
    """Return what `planning` would give, and write nothing; of a dataset that is not on record only what it was told.

    Raises:
        UserError: something was spent on another unit than ``unit``.
    """
    if not (folder() / LINES).exists():
        return told
    with opened() as book:
        return book.priors(run, dataset_id, unit, told)


@contextlib.contextmanager
def planning(run: RunSpec, dataset_id: str, unit: Unit, told: Named) -> Iterator[Named]:
    """Name what was spent on a run's images before it was first planned; if the block makes its plan, put that on record.

    Runs that are planned together do not count each other, and a run that is planned again keeps its plan. Left out are the
    scores that the run uses itself, where they were released of the same prepared dataset: its own plan has them.

    Args:
        run: what is planned.
        dataset_id: of its images.
        unit: what it protects.
        told: earlier releases that the owner named.

    Raises:
        UserError: something was spent on another unit, or the dataset is not on record.
    """
    with opened() as book:
        _check_known(book, dataset_id)
        found, lines = book.priors(run, dataset_id, unit, told), len(book.lines)
        for spent in book.of(Spent):
            if (spent.key, spent.release) in found.keys() - told.keys():
                LOG.info("%s: counts what %s, on record in %s", run.id, book.described(spent), book.path)
    yield found
    with opened() as book:
        if book.planned(run.id, dataset_id) is None:
            book.add(Planned(run=run.id, dataset_id=dataset_id, lines=lines))


def spent_on(dataset_id: str, name: str, unit: Unit) -> Named | None:
    """Name all that is on record of a dataset's images, with what was spent on datasets of its name; None: it is not known.

    Raises:
        UserError: something was spent on another unit than ``unit``.
    """
    if not (folder() / LINES).exists():
        return None
    with opened() as book:
        same = {known.dataset_id for known in book.of(Known) if known.name == name or known.dataset_id == dataset_id}
        if not same:
            return None
        ids = set().union(*map(book.same_images, same))
        return named([spent for spent in book.of(Spent) if spent.dataset_id in ids], unit)


def check_not_released(subject: str, dataset_id: str) -> None:
    """Check that a run, or scores, may be released of a dataset's images.

    Raises:
        UserError: they were, and no word of the owner has set them free; or the dataset is not on record.
    """
    with opened() as book:
        _check_known(book, dataset_id)
        if made := book.live(subject, dataset_id):
            told = "; ".join(map(book.described, made))
            copy = "it is not made a second time, as that would spend epsilon a second time. Put its files back from a copy"
            word = f"say dpsapf spend-again --run {subject}: later plans and releases then count both"
            raise UserError("run", subject, f"{told}, on record in {book.path}; {copy}, or {word}")


def check_public(proxy: DatasetRecord, dataset: DatasetRecord) -> None:
    """Check, as far as the record tells, that images whose scores without noise choose are not private.

    Args:
        proxy: the dataset that is scored.
        dataset: that is trained on.

    Raises:
        UserError: an image is in both, or something was spent on the first.
    """
    with opened() as book:
        if proxy.id in book.same_images(dataset.id):
            remedy = f"has an image of {dataset.name}, which would choose without noise: take another dataset, or remove it"
            raise UserError("proxy", proxy.name, remedy)
        if spent := book.spent(proxy.id):
            remedy = f"is private itself, as {book.described(spent[0][1])}: take a dataset that is public"
            raise UserError("proxy", proxy.name, remedy)


def _spent_before(book: Record, made: Plan, lines: int) -> int:
    """Count what was spent before a plan, but for the run's own scores: one by one, whatever `Record.priors` makes of it."""
    earlier = {(spent.key, spent.release): spent for _, spent in book.spent(made.dataset_id, lines)}
    return sum(spent.subject != made.run.scores_id for spent in earlier.values())


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
        missing = book.priors(made.run, made.dataset_id, made.unit, {}).keys() - counted
        planned = book.planned(made.run.id, made.dataset_id)
        if planned is None or missing or len(counted) < _spent_before(book, made, planned.lines):
            remedy = "was planned before dpsapf spend-again, and does not count what was spent: delete it, and plan the run again"
            raise UserError("--plan", made.run.id, remedy)
