"""prepare-dataset: load, check and split one sensitive dataset."""

import logging
import os

import numpy as np
import pandas as pd

from dpsapf.datasets.archive import write_archive
from dpsapf.datasets.images import LabelledImages, Parts
from dpsapf.datasets.loaders import loader
from dpsapf.datasets.preview import contact_sheet
from dpsapf.datasets.splits import split
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import DatasetEntry, entry
from dpsapf.experiment.stages import PrepareDataset
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import write_record

LOG = logging.getLogger("dpsapf")


def prepare_dataset(options: PrepareDataset) -> None:
    """Write dataset.npz, its record and a preview; write nothing if anything is wrong.

    The archive holds ``{train,validation,test}_images`` uint8 [N, H, W, 3] (grey images three times)
    and ``{train,validation,test}_labels`` int64 [N]; ``train_users`` int64 [N], numbered from 0, if the entry names
    ``users``; and 32 secret bytes, ``salt``, so that the archive's digest, which
    records may publish, says nothing to whoever lacks the archive.

    Raises:
        UserError: the entry, the source or an image is wrong (see the loaders and `split`).
    """
    item = entry(options.registry, options.name, DatasetEntry)
    check_classes(item)
    parts = split(_load(item), item)
    check_training_classes(parts["train"].labels, item.classes)
    parts = {name: part._replace(images=as_rgb(part.images)) for name, part in parts.items()}
    write_archive(options.archive, arrays(parts) | {"salt": np.frombuffer(os.urandom(32), dtype=np.uint8)})
    record = _record(options, item, parts)
    with atomic(options.preview) as temporary:
        contact_sheet(parts["train"], item.classes, _title(record)).save(temporary)
    write_record(options.record, record)
    LOG.info("%s, %d validation, %d test", _title(record), record.validation, record.test)


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


def _load(item: DatasetEntry) -> Parts:
    parts = loader(item).load(item)
    for part in parts.values():
        channels, classes = part.images.shape[-1], int(part.labels.max()) + 1
        if channels != item.channels:
            raise UserError("channels", item.channels, f"loader {item.loader} gives {channels}")
        if classes > len(item.classes):
            raise UserError("classes", list(item.classes), f"loader {item.loader} gives {classes} classes")
    return parts


def check_training_classes(labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Check that every class has a training image (``labels``: int64 [N]).

    Raises:
        UserError: names the classes that have none.
    """
    sizes = np.bincount(labels, minlength=len(classes))
    empty = [name for name, size in zip(classes, sizes, strict=True) if not size]
    if empty:
        raise UserError("classes", empty, "no training image; add images, or hold fewer out for validation and test")


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Repeat grey [N, H, W, 1] to [N, H, W, 3]; RGB stays as it is."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def arrays(parts: Parts) -> dict[str, np.ndarray]:
    """Name the arrays of an archive; users' names become numbers, in the order in which they appear."""
    found = {f"{name}_{key}": getattr(part, key) for name, part in parts.items() for key in ("images", "labels")}
    users = parts["train"].users
    return found if users is None else found | {"train_users": pd.factorize(users)[0]}


def _record(options: PrepareDataset, item: DatasetEntry, parts: Parts) -> DatasetRecord:
    shared = ("loader", "source", "licence", "procedural", "classes", "prompts", "resolution", "channels")
    return DatasetRecord(
        name=options.name,
        **{key: getattr(item, key) for key in shared},
        **{name: len(part.labels) for name, part in parts.items()},
        users=_users(parts["train"]),
        train_per_class=tuple(np.bincount(parts["train"].labels).tolist()),
        id=sha256(options.archive),
        provenance=provenance(),
    )


def _users(train: LabelledImages) -> int | None:
    return None if train.users is None else len(set(train.users))


def _title(record: DatasetRecord) -> str:
    kind = ", procedural" if record.procedural else ""
    return f"{record.name}{kind}: {record.train} training images of {record.resolution} x {record.resolution}"
