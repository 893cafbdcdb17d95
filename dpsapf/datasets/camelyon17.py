"""Camelyon17 (Bandi et al. 2018) as WILDS 1.0 publishes it (Koh et al. 2021): the folder ``camelyon17_v1.0``."""

from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.datasets.image_files import files_source
from dpsapf.datasets.images import Source
from dpsapf.datasets.published import AGAIN, OWN, check_counts, in_use, published
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError, one_of

RELEASE, METADATA = "RELEASE_v1.0.txt", "metadata.csv"
HELD_OUT_CENTRES = {1: "validation", 2: "test"}  # hospitals of which no image is a training image
SEEN_SPLITS = {0: "train", 1: "in-distribution validation"}  # of the other hospitals, by the column split
COUNTS = {"train": 302_436, "in-distribution validation": 33_560, "validation": 34_904, "test": 85_054}
INTEGERS = {"node": None, "x_coord": None, "y_coord": None, "tumor": (0, 1), "center": (0, 1, 2, 3, 4), "split": (0, 1)}
WHOM = ("patient", "slide")


def camelyon17(entry: DatasetEntry) -> Source:
    """Load the patches (96 x 96) by whether there is tumour in their central 32 x 32 pixels, in WILDS' official splits.

    The column ``split`` alone is no split: it is drawn over all hospitals. The official one goes by hospital first, as
    WILDS' own loader does: hospital 1 is validation, hospital 2 test, and of the others what ``split`` says; its 33,560
    in-distribution validation patches are not used. An entry's ``users`` is the column that says whom a patch is of:
    ``patient`` or ``slide``. The files' alpha channel is dropped.

    Returns:
        The patches in the order of metadata.csv; label 1: tumour.

    Raises:
        UserError: names the file, and the row or image in it, that is wrong or missing.
    """
    folder = published(entry, "the folder camelyon17_v1.0")
    if folder.is_file():
        remedy = "must be the folder camelyon17_v1.0: images of a .tar.gz cannot be read in any order, unpack it first"
        raise UserError("source", entry.source, remedy)
    if not (folder / RELEASE).is_file():
        raise UserError("source", entry.source, f"lacks {RELEASE}: it must be WILDS' folder camelyon17_v1.0; {OWN}")
    if entry.users not in (None, *WHOM):
        raise UserError("users", entry.users, one_of(entry.users, WHOM))
    table = read_metadata(folder / METADATA)
    splits = official_splits(table)
    check_counts(entry, splits, COUNTS)
    kept, splits = in_use(splits, entry)
    table = table.iloc[kept]
    names = [_name(*row) for row in table[["patient", "node", "x_coord", "y_coord"]].itertuples(index=False)]
    _check_present(folder, names)
    users = None if entry.users is None else table[entry.users].to_numpy(str)
    labels = table["tumor"].to_numpy(np.int64)
    return files_source(folder, names, labels, splits, replace(entry, convert=True), users, on_white=False)


def read_metadata(path: Path) -> pd.DataFrame:
    """Read ``metadata.csv``: a row for each patch.

    Returns:
        Columns ``patient`` and ``slide`` as written, and as integers ``node``, ``x_coord`` and ``y_coord`` [pixels],
        ``tumor`` (0 or 1), ``center`` (the hospital, 0 to 4) and ``split`` (0 or 1).

    Raises:
        UserError: the file cannot be read, lacks a column, or has another value in one.
    """
    try:
        table = pd.read_csv(path, index_col=0, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError("source", str(path), f"must be WILDS' metadata.csv ({error}): {AGAIN}") from error
    missing = [name for name in (*WHOM, *INTEGERS) if name not in table]
    if missing:
        raise UserError(str(path), f"no column {missing[0]}", f"must have {', '.join((*WHOM, *INTEGERS))}: {AGAIN}")
    for name, allowed in INTEGERS.items():
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = ~(numbers.isin(allowed) if allowed else numbers % 1 == 0)
        if wrong.any():
            told = ", ".join(map(str, allowed or ["an integer"]))
            raise UserError(
                f"{path}: row {table.index[wrong][0]}", f"{name} {table[name][wrong].iloc[0]}", f"must be {told}: {AGAIN}"
            )
        table[name] = numbers.astype(np.int64)
    return table


def official_splits(table: pd.DataFrame) -> np.ndarray:
    """Return the split of each patch of `read_metadata`, str [N]: one of `COUNTS`."""
    by_centre = table["center"].map(HELD_OUT_CENTRES)
    return by_centre.fillna(table["split"].map(SEEN_SPLITS)).to_numpy(str)


def _name(patient: str, node: int, x: int, y: int) -> str:
    return f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"


def _check_present(folder: Path, names: list[str]) -> None:
    present = {path.relative_to(folder).as_posix() for path in folder.glob("patches/*/*.png")}
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(str(folder), f"no {missing[0]}", f"lacks {len(missing)} image(s): {AGAIN}")
