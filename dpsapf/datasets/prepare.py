"""prepare-dataset: load, check and split one sensitive dataset."""

import collections
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.datasets.duplicates import equal_images, pixel_digest, told
from dpsapf.datasets.images import BATCH, LabelledImages, Source
from dpsapf.datasets.loaders import loader
from dpsapf.datasets.prepared import kept_salt, preparing, read_part
from dpsapf.datasets.preview import COLUMNS, contact_sheet
from dpsapf.datasets.splits import counts_to_hold_out, placed, unit_hashes
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import DatasetEntry, entry
from dpsapf.experiment.stages import PrepareDataset
from dpsapf.support.arrays import Writer
from dpsapf.support.errors import Mistakes, UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.records import write_record

LOG = logging.getLogger("dpsapf")


def prepare_dataset(options: PrepareDataset) -> None:
    """Write dataset.safetensors (see `dpsapf.datasets.prepared`), its record and a preview; nothing if anything is wrong.

    Images are decoded on all threads and written batch by batch. The archive's digest, which records may publish, says
    nothing to whoever lacks the archive, because of 32 secret bytes in it. Prepared again in the same folder, the same images
    give the same archive.

    Raises:
        UserError: the entry, the source or an image is wrong (see the loaders and `dpsapf.datasets.splits`).
    """
    item = entry(options.registry, options.name, DatasetEntry)
    source, counts = checked_source(item, options.threads)
    shape = (len(source.labels), item.resolution, item.resolution, item.channels)
    with preparing(options.archive, shape, users=source.users is not None) as writer:
        hashes, digests = _write_images(source, item, writer, options.threads)
        places = placed(source.splits, counts, hashes)
        training = places == SPLITS.index("train")
        check_training_classes(source.labels[training], item.classes)
        writer.put("labels", 0, source.labels)
        writer.put("split", 0, places)
        writer.put("salt", 0, np.frombuffer(kept_salt(options.archive), dtype=np.uint8))
        if source.users is not None:
            writer.put("users", 0, numbered(source.users, training))
    record = _record(options, item)
    with atomic(options.preview) as temporary:
        contact_sheet(_shown(options.archive, len(item.classes)), item.classes, _title(record)).save(temporary)
    write_record(options.record, record)
    LOG.info("%s, %d validation, %d test", _title(record), record.validation, record.test)
    if equal := equal_images(digests, training, source.users):
        LOG.warning("%s", told(equal, source.names, by_user=source.users is not None))


def checked_source(item: DatasetEntry, threads: int) -> tuple[Source, dict[str, int]]:
    """Find a dataset's images, and how many each split takes out of them.

    If anything is wrong, images are decoded on ``threads`` threads, to tell the faulty ones, too, in the same error.

    Raises:
        UserErrors: a line for every mistake in the entry and its source.
    """
    mistakes = Mistakes()
    source, counts = None, {}
    with mistakes.noting():
        check_classes(item)
    with mistakes.noting():
        source = loader(item).load(item)
    if source is not None:
        mistakes += source.mistakes
        with mistakes.noting():
            check_labels(source, item)
        with mistakes.noting():
            counts = counts_to_hold_out(source.splits, item)
    if source is not None and mistakes:
        with mistakes.noting():
            collections.deque(source.decoded(threads), maxlen=0)
    mistakes.tell()
    return source, counts


def _write_images(source: Source, item: DatasetEntry, writer: Writer, threads: int) -> tuple[np.ndarray, list[bytes]]:
    """Write the images as they are decoded.

    Returns:
        The hash of each one's pixels, or of its user's name, float64 [N]; and of each one's pixels what `pixel_digest` returns.
    """
    hashes, digests, start = np.empty(len(source.labels)), [], 0
    for images in track(source.decoded(threads), "decode", "batch", total=-(-len(hashes) // BATCH)):
        if images.shape[-1] != item.channels:
            raise UserError("channels", item.channels, f"loader {item.loader} gives {images.shape[-1]}")
        rows = slice(start, start + len(images))
        named = [image.tobytes() for image in images] if source.users is None else [str(u).encode() for u in source.users[rows]]
        hashes[rows] = unit_hashes(named, item.split_seed)
        digests += map(pixel_digest, images)
        writer.put("images", start, images)
        start = rows.stop
    return hashes, digests


def numbered(users: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Number users from 0, those of training images before all others.

    Args:
        users: name of the person that each image is of, str [N].
        training: whether it is a training image, bool [N].

    Returns:
        int64 [N].
    """
    order = np.argsort(~training, kind="stable")
    numbers = np.empty(len(users), np.int64)
    numbers[order] = pd.factorize(users[order])[0]
    return numbers


def check_classes(item: DatasetEntry) -> None:
    """Check an entry's class names and prompts.

    Raises:
        UserError: fewer than two classes, a name twice, or not one prompt per class.
    """
    if len(item.classes) < 2:
        raise UserError("classes", list(item.classes), "needs at least two classes")
    if len(set(item.classes)) < len(item.classes):
        raise UserError("classes", list(item.classes), "must not name a class twice")
    if len(item.prompts) != len(item.classes):
        raise UserError("prompts", list(item.prompts), f"needs one prompt for each of the {len(item.classes)} classes")


def check_labels(source: Source, item: DatasetEntry) -> None:
    """Check that an entry has a class for each label of its source.

    Raises:
        UserError: the source has more.
    """
    classes = int(source.labels.max()) + 1
    if classes > len(item.classes):
        raise UserError("classes", list(item.classes), f"loader {item.loader} gives {classes} classes")


def check_training_classes(labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Check that every class has a training image (``labels``: int64 [N]).

    Raises:
        UserError: names the classes that have none.
    """
    sizes = np.bincount(labels, minlength=len(classes))
    empty = [name for name, size in zip(classes, sizes, strict=True) if not size]
    if empty:
        raise UserError("classes", empty, "no training image; add images, or hold fewer out for validation and test")


def _shown(archive: Path, classes: int) -> LabelledImages:
    """Read the training images that the preview shows."""
    train = read_part(archive, "train")
    rows = np.concatenate([np.flatnonzero(train.labels == label)[:COLUMNS] for label in range(classes)])
    return LabelledImages(train[rows], train.labels[rows])


def _record(options: PrepareDataset, item: DatasetEntry) -> DatasetRecord:
    shared = ("loader", "source", "licence", "procedural", "classes", "prompts", "resolution", "channels")
    parts = {name: read_part(options.archive, name) for name in SPLITS}
    users = parts["train"].users
    return DatasetRecord(
        name=options.name,
        **{key: getattr(item, key) for key in shared},
        **{name: len(part) for name, part in parts.items()},
        users=None if users is None else len(np.unique(users)),
        train_per_class=tuple(np.bincount(parts["train"].labels).tolist()),
        id=sha256(options.archive),
        provenance=provenance(),
    )


def _title(record: DatasetRecord) -> str:
    kind = ", procedural" if record.procedural else ""
    return f"{record.name}{kind}: {record.train} training images of {record.resolution} x {record.resolution}"
