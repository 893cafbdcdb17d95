"""A user's folder or .zip of class folders with PNG and JPEG files."""

import typing
from pathlib import Path, PurePosixPath

import numpy as np

from dpsapf.datasets.image_files import files_source, listed
from dpsapf.datasets.image_tables import read_labels, read_users
from dpsapf.datasets.images import Source, check_digest
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class Member(typing.NamedTuple):
    """One image file: its name in the source and its label."""

    name: str
    label: int


def image_folder(entry: DatasetEntry) -> Source:
    """Load ``CLASS/FILE``, or ``train|validation|val|test/CLASS/FILE``, from a folder or a .zip.

    The class folders are the entry's ``classes``; files are taken in the order of their names, hidden
    files are passed over, and one folder around everything is allowed. A .zip is read in memory and
    never unpacked. Images are cropped to their central square and resized (Lanczos). An entry's ``labels`` is a CSV that
    names the files, in any folders, and their labels instead (`read_labels`); its ``users`` is one that says who each
    image is of (`read_users`).

    Returns:
        The images of all splits that the source has, and users' names if the entry tells them. Files are decoded, on as many
        threads as are asked for, when they are needed.

    Raises:
        UserError: names the file and what is wrong with it, or the class folders that do not match.
    """
    path = Path(entry.source)
    if not path.exists():
        raise UserError("source", entry.source, "does not exist; put the folder or .zip of class folders there")
    check_digest(entry, lambda: sha256(path))
    files = listed(path)
    plan = arrange(files, entry) if entry.labels is None else arrange_rows(files, entry)
    members = [member for part in plan.values() for member in part]
    names = [member.name for member in members]
    users = None if entry.users is None else read_users(Path(entry.users), names)
    return files_source(
        path,
        names,
        labels=np.array([member.label for member in members], np.int64),
        splits=np.repeat(list(plan), [len(part) for part in plan.values()]),
        entry=entry,
        users=None if users is None else np.array([users[name] for name in names]),
    )


def arrange(names: list[str], entry: DatasetEntry) -> dict[str, list[Member]]:
    """Sort file names into splits and labels; the label is the folder's position in ``classes``.

    Args:
        names: ``/``-separated names relative to the source, in any order.
        entry: gives the class names.

    Raises:
        UserError: a file that is not ``CLASS/FILE`` or ``SPLIT/CLASS/FILE`` or has another suffix, a
            folder that is no class, or a class without images.
    """
    paths = visible(names, {*entry.classes, *SPLIT_FOLDERS})
    by_split = any(parts[0] in SPLIT_FOLDERS and parts[0] not in entry.classes for parts in paths.values())
    plan: dict[str, list[Member]] = {"train": []}
    for name, parts in paths.items():
        split, label = _place(name, parts, by_split, entry)
        plan.setdefault(split, []).append(Member(name, label))
    for split, members in plan.items():
        _check_labels(split, members, entry)
    return plan


def arrange_rows(names: list[str], entry: DatasetEntry) -> dict[str, list[Member]]:
    """Sort the files that the entry's ``labels`` name into splits and labels; other files are passed over.

    Args:
        names: ``/``-separated names relative to the source, in any order.
        entry: gives the CSV and the class names.

    Raises:
        UserError: the CSV is wrong, or names a file that the source lacks, another class or split, or none of a class.
    """
    table, known = read_labels(Path(entry.labels)), set(names)
    plan: dict[str, list[Member]] = {"train": []}
    for name, label, split in table.sort_values("file").itertuples(index=False):
        if name not in known or not name.lower().endswith(SUFFIXES):
            raise UserError(f"{entry.labels}: {name}", "no such file", f"{entry.source} must have it, as PNG or JPEG")
        if label not in entry.classes:
            raise UserError(
                f"{entry.labels}: {name}", label, f"the label must be one of the entry's classes: {', '.join(entry.classes)}"
            )
        if split not in SPLIT_FOLDERS:
            raise UserError(f"{entry.labels}: {name}", split, f"the split must be one of {', '.join(SPLIT_FOLDERS)}")
        plan.setdefault(SPLIT_FOLDERS[split], []).append(Member(name, entry.classes.index(label)))
    for split, members in plan.items():
        _check_labels(split, members, entry)
    return plan


def visible(names: list[str], known: set[str]) -> dict[str, tuple[str, ...]]:
    """Sort file names, without hidden files.

    Args:
        names: ``/``-separated.
        known: folders that are not the one around everything.

    Returns:
        The parts of each name; the one folder around everything, if there is one, is left off.
    """
    return _unwrap({name: PurePosixPath(name).parts for name in sorted(names) if not _hidden(name)}, known)


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1] in ("Thumbs.db", "desktop.ini")


def _unwrap(paths: dict[str, tuple[str, ...]], known: set[str]) -> dict[str, tuple[str, ...]]:
    tops = {parts[0] for parts in paths.values()}
    if len(tops) == 1 and not tops & known and all(len(parts) > 2 for parts in paths.values()):
        return {name: parts[1:] for name, parts in paths.items()}
    return paths


def _place(name: str, parts: tuple[str, ...], by_split: bool, entry: DatasetEntry) -> tuple[str, int]:
    where = f"{entry.source}/{name}"
    if len(parts) != 2 + by_split or not name.lower().endswith(SUFFIXES):
        layout = "train|validation|test/CLASS/FILE" if by_split else "CLASS/FILE"
        raise UserError(where, name, f"must be {layout} with a PNG or JPEG file; move or remove it")
    if by_split and parts[0] not in SPLIT_FOLDERS:
        raise UserError(where, parts[0], f"beside split folders only split folders are allowed: {', '.join(SPLIT_FOLDERS)}")
    if parts[-2] not in entry.classes:
        raise UserError(where, parts[-2], f"this folder is none of the entry's classes: {', '.join(entry.classes)}")
    return SPLIT_FOLDERS[parts[0]] if by_split else "train", entry.classes.index(parts[-2])


def _check_labels(split: str, members: list[Member], entry: DatasetEntry) -> None:
    present = {member.label for member in members}
    missing = [name for label, name in enumerate(entry.classes) if label not in present]
    if missing:
        raise UserError("source", entry.source, f"no {split} images in class(es) {', '.join(missing)}")
