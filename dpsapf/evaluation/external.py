"""Images that another group made: read from a folder, a .zip or an .npz, and taken in with what is claimed of them."""

import logging
import zipfile
from pathlib import Path

import numpy as np

from dpsapf.datasets.archive import stored_rows, write_archive
from dpsapf.datasets.image_files import files_source, listed
from dpsapf.datasets.image_folder import check_format, visible
from dpsapf.datasets.images import LabelledImages, as_rgb, check_side
from dpsapf.datasets.preview import contact_sheet
from dpsapf.experiment.records import DatasetRecord, External
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.experiment.runs import external_run
from dpsapf.experiment.stages import ImportImages
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)


def import_images(options: ImportImages) -> None:
    """Write another group's images as samples.npz, a contact sheet of them, and external.json with what is claimed of them.

    Raises:
        UserError: as `labelled_images`.
    """
    dataset = read_record(options.dataset, DatasetRecord)
    found = labelled_images(options.images, dataset, options.threads)
    made = LabelledImages(found.images[:], found.labels)
    run = external_run(options.external, dataset.name, options.public_model, options.epsilon, options.seed)
    write_archive(options.archive, made._asdict())
    with atomic(options.contact_sheet) as temporary:
        contact_sheet(made, dataset.classes, f"made elsewhere: {run.id}").save(temporary)
    record = External(
        run=run,
        label=options.label,
        claimed_epsilon=options.epsilon,
        claimed_delta=options.delta,
        images=len(made.labels),
        source=sha256(options.images),
        samples=sha256(options.archive),
        dataset_id=dataset.id,
        provenance=provenance(),
    )
    write_record(options.record, record)
    LOG.info("%s: %d images; epsilon %s is %s", run.id, record.images, record.claimed_epsilon, record.claim)


def labelled_images(path: Path, dataset: DatasetRecord, threads: int = 1) -> LabelledImages:
    """Read labelled images as they were made: nothing is cropped or resized, colour stays colour, grey is repeated.

    Args:
        path: a folder of class folders with PNG and JPEG files or a .zip of it, whose folders' names are the dataset's classes;
            or an .npz without pickles: ``images`` uint8 [N, H, W, 3] and ``labels`` integers [N]; or ``x`` and ``y``, as
            DPImageBench (Gong et al. 2025, arXiv 2503.14681) writes them: floats in [0, 1], [N, C, H, W].
        dataset: whose classes and resolution the images must have.
        threads: that decode files.

    Raises:
        UserError: classes, resolution, type or values are others, or a class has no image; says which.
    """
    return _from_archive(path, dataset) if path.suffix == ".npz" else _from_files(path, dataset, threads)


def _from_files(path: Path, dataset: DatasetRecord, threads: int) -> LabelledImages:
    files, mistakes = listed(path)
    folders = {}
    for name, parts in visible(files, set(dataset.classes)).items():
        with mistakes.noting():
            _check_place(f"{path}/{name}", parts)
            folders[name] = parts[0]
    with mistakes.noting():
        _check_classes(path, set(folders.values()), dataset)
    mistakes.tell()
    labels = np.array([dataset.classes.index(folder) for folder in folders.values()], np.int64)
    entry = DatasetEntry(
        loader="image-folder",
        source=str(path),
        licence="",
        classes=dataset.classes,
        prompts=dataset.prompts,
        resolution=dataset.resolution,
        channels=3,
        validation=0,
        test=0,
        convert=True,
    )
    decoded = files_source(path, list(folders), labels, np.full(len(labels), "train"), entry, exact=True).decoded(threads)
    return LabelledImages(np.concatenate(list(decoded)), labels)


def _check_place(where: str, parts: tuple[str, ...]) -> None:
    remedy = "must be CLASS/FILE with a PNG or JPEG file; move or remove it"
    check_format(where, parts[-1], remedy)
    if len(parts) != 2:
        raise UserError(where, "misplaced", remedy)


def _check_classes(path: Path, folders: set[str], dataset: DatasetRecord) -> None:
    wrong = {
        "missing": [name for name in dataset.classes if name not in folders],
        "superfluous": sorted(folders - set(dataset.classes)),
    }
    told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
    if told:
        raise UserError(f"{path}: class folders", told, f"must be the classes of {dataset.name}: {', '.join(dataset.classes)}")


def _from_archive(path: Path, dataset: DatasetRecord) -> LabelledImages:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in ("images", "labels", "x", "y") if name in archive.files]
        arrays = {name: stored_rows(path, name) for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(str(path), "unreadable", f"must be an .npz without pickled objects ({error})") from error
    if {"images", "labels"} <= arrays.keys():
        images, labels = arrays["images"], arrays["labels"][:]
    elif {"x", "y"} <= arrays.keys():
        images, labels = _from_unit_range(path, arrays["x"][:]), arrays["y"][:]
    else:
        raise UserError(f"{path}: arrays", sorted(arrays), "must be images and labels, or DPImageBench's x and y")
    _check_images(path, images, dataset)
    _check_labels(path, labels, len(images), dataset)
    return LabelledImages(images, labels.astype(np.int64))


def _from_unit_range(path: Path, images: np.ndarray) -> np.ndarray:
    """Turn floats in [0, 1], [N, C, H, W] with C of 1 or 3, into uint8 [N, H, W, 3]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype.kind != "f":
        raise UserError(
            f"{path}: x", _shape(images), "must be floats [N, 1 or 3, H, W]; uint8 images are named images and labels"
        )
    if not (len(images) and np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise UserError(f"{path}: x", "values outside [0, 1]", "scale and clip them as their authors do before they measure")
    pixels = (images * 255).round().astype(np.uint8)
    return np.ascontiguousarray(as_rgb(pixels.transpose(0, 2, 3, 1)))  # else features differ in their last digits


def _check_images(path: Path, images: np.ndarray, dataset: DatasetRecord) -> None:
    if len(images.shape) != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(f"{path}: images", _shape(images), "must be uint8 [N, H, W, 3]")
    check_side(f"{path}: images", images.shape[2:0:-1], dataset.resolution)


def _check_labels(path: Path, labels: np.ndarray, count: int, dataset: DatasetRecord) -> None:
    classes = len(dataset.classes)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels", _shape(labels), f"must be integers [{count}], one for each image")
    outside = sorted(set(labels.tolist()) - set(range(classes)))
    absent = [name for number, name in enumerate(dataset.classes) if number not in labels]
    if outside:
        raise UserError(f"{path}: labels", outside[0], f"must be positions in the {classes} classes of {dataset.name}, from 0")
    if absent:
        raise UserError(f"{path}: labels", "no images", f"of class(es) {', '.join(absent)}: every class needs one")


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
