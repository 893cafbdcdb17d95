"""A user's folder or .zip of class folders with PNG and JPEG files."""

import typing
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from dpsapf.datasets.formats import named
from dpsapf.datasets.image_files import files_source, listed
from dpsapf.datasets.image_tables import read_labels, read_users
from dpsapf.datasets.images import Source, check_digest
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.registries import DatasetEntry
from dpsapf.support.errors import Mistakes, UserError, one_of
from dpsapf.support.files import sha256
from dpsapf.support.names import composed

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class Member(typing.NamedTuple):
    """One image file: its name in the source and its label."""

    name: str
    label: int


class Arranged(typing.NamedTuple):
    """Image files by split, and what is wrong with the others."""

    plan: dict[str, list[Member]]
    mistakes: Mistakes


def image_folder(entry: DatasetEntry) -> Source:
    """Load ``CLASS/FILE``, or ``train|validation|val|test/CLASS/FILE``, from a folder or a .zip.

    The class folders are the entry's ``classes``; files are taken in the order of their names, hidden
    files are passed over, and one folder around everything is allowed. Links in a folder are followed. A .zip is read in
    memory and never unpacked. Images are turned upright, cropped to their central square and resized (Lanczos). An entry's
    ``labels`` is a CSV that names the files, in any folders, and their labels instead (`read_labels`); its ``users`` is one
    that says who each image is of (`read_users`). Names are compared in Unicode's composed form.

    Returns:
        The images of all splits that the source has, and users' names if the entry tells them. Files are decoded, on as many
        threads as are asked for, when they are needed. Files that do not belong, and class folders that do not match, are the
        source's ``mistakes``.

    Raises:
        UserError: the source or a CSV cannot be read, or the source has another digest or no image file in its place.
    """
    path = Path(entry.source)
    if not path.exists():
        raise UserError("source", entry.source, "does not exist; put the folder or .zip of class folders there")
    check_digest(entry, lambda: sha256(path))
    plan, mistakes = _found(path, entry)
    members = [member for part in plan.values() for member in part]
    if not members:
        mistakes.tell()
    names = [member.name for member in members]
    return files_source(
        path,
        names,
        labels=np.array([member.label for member in members], np.int64),
        splits=np.repeat(list(plan), [len(part) for part in plan.values()]),
        entry=entry,
        users=_users(names, entry, mistakes),
        mistakes=mistakes,
    )


def own_splits(entry: DatasetEntry) -> Collection[str]:
    """Name the splits that a source has apart, by its files' names or the CSV; all if the source is not there.

    Raises:
        UserError: the source or the CSV cannot be read.
    """
    path = Path(entry.source)
    return _found(path, entry).plan if path.exists() else SPLITS


def _found(path: Path, entry: DatasetEntry) -> Arranged:
    files, mistakes = listed(path)
    plan, misplaced = arrange(files, entry) if entry.labels is None else arrange_rows(files, entry)
    return Arranged(plan, Mistakes([*mistakes, *misplaced]))


def _users(names: list[str], entry: DatasetEntry, mistakes: Mistakes) -> np.ndarray | None:
    """Return whom each image is of, str [N]; None if that is not told, or told with a mistake."""
    with mistakes.noting():
        if entry.users is not None:
            users = read_users(Path(entry.users), list(map(composed, names)))
            return np.array([users[composed(name)] for name in names])
    return None


def arrange(names: list[str], entry: DatasetEntry) -> Arranged:
    """Sort file names into splits and labels; the label is the folder's position in ``classes``.

    Args:
        names: ``/``-separated names relative to the source, in any order.
        entry: gives the class names.

    Returns:
        The files that belong. The mistakes are files that are not ``CLASS/FILE`` or ``SPLIT/CLASS/FILE`` or have another
        suffix, folders that are no class, and classes without images.
    """
    paths = visible(names, {*entry.classes, *SPLIT_FOLDERS})
    by_split = _has_split_folders(paths.values(), entry)
    plan: dict[str, list[Member]] = {"train": []}
    mistakes, strange = Mistakes(), Counter()
    for name, parts in paths.items():
        with mistakes.noting():
            split = _split(f"{entry.source}/{name}", parts, by_split)
            if parts[-2] in entry.classes:
                plan.setdefault(split, []).append(Member(name, entry.classes.index(parts[-2])))
            else:
                strange[str(PurePosixPath(name).parent)] += 1
    for folder, count in strange.items():
        remedy = f"this folder is none of the entry's classes: its name {one_of(PurePosixPath(folder).name, entry.classes)}"
        mistakes.append(UserError(f"{entry.source}/{folder}", f"{count} image(s)", remedy))
    return Arranged(plan, Mistakes([*mistakes, *_without_images(plan, entry)]))


def arrange_rows(names: list[str], entry: DatasetEntry) -> Arranged:
    """Sort the files that the entry's ``labels`` name into splits and labels; other files are passed over.

    Args:
        names: ``/``-separated names relative to the source, in any order.
        entry: gives the CSV and the class names.

    Returns:
        The files that belong. The mistakes are files that the CSV names and the source lacks, other classes or splits, and
        classes without images.

    Raises:
        UserError: the CSV cannot be read.
    """
    table, known = read_labels(Path(entry.labels)), defaultdict(list)
    for name in names:
        known[composed(name)].append(name)
    plan: dict[str, list[Member]] = {"train": []}
    mistakes = Mistakes()
    for row in table.sort_values("file").itertuples(index=False):
        with mistakes.noting():
            _check_row(*row, known, entry)
            member = Member(known[row.file][0], entry.classes.index(row.label))
            plan.setdefault(SPLIT_FOLDERS[row.split], []).append(member)
    return Arranged(plan, Mistakes([*mistakes, *_without_images(plan, entry)]))


def _check_row(name: str, label: str, split: str, known: Mapping[str, list[str]], entry: DatasetEntry) -> None:
    where = f"{entry.labels}: {name}"
    if name not in known:
        raise UserError(where, "no such file", f"{entry.source} must have it, as PNG or JPEG")
    if len(known[name]) > 1:
        raise UserError(where, f"{len(known[name])} files", "have this name, with accents in other code points: rename one")
    check_format(where, name, f"{entry.source} must have it, as PNG or JPEG")
    if label not in entry.classes:
        raise UserError(where, label, f"the label {one_of(label, entry.classes)}")
    if split not in SPLIT_FOLDERS:
        raise UserError(where, split, f"the split {one_of(split, SPLIT_FOLDERS)}")


def visible(names: list[str], known: set[str]) -> dict[str, tuple[str, ...]]:
    """Sort file names by their composed form.

    Args:
        names: ``/``-separated.
        known: folders that are not the one around everything.

    Returns:
        The parts of each name, composed; the one folder around everything, if there is one, is left off.
    """
    return _unwrap({name: PurePosixPath(composed(name)).parts for name in sorted(names, key=composed)}, known)


def _unwrap(paths: dict[str, tuple[str, ...]], known: set[str]) -> dict[str, tuple[str, ...]]:
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    if len(tops) == 1 and not tops & known and any(len(parts) > 2 for parts in paths.values()):
        return {name: parts[1:] or parts for name, parts in paths.items()}
    return paths


def _has_split_folders(paths: Collection[tuple[str, ...]], entry: DatasetEntry) -> bool:
    """Say whether more files are in folders of splits than in folders of classes; what is elsewhere is a mistake."""
    tops = Counter(parts[0] for parts in paths if len(parts) > 1)
    classes = sum(tops.pop(name, 0) for name in entry.classes)
    return sum(tops[name] for name in SPLIT_FOLDERS) > classes


def _split(where: str, parts: tuple[str, ...], by_split: bool) -> str:
    """Return the split of a file that is where a file has to be."""
    layout = "train|validation|test/CLASS/FILE" if by_split else "CLASS/FILE"
    remedy = f"must be {layout} with a PNG or JPEG file; move or remove it"
    check_format(where, parts[-1], remedy)
    if len(parts) != 2 + by_split:
        raise UserError(where, "misplaced", remedy)
    if by_split and parts[0] not in SPLIT_FOLDERS:
        raise UserError(where, parts[0], f"beside split folders only split folders are allowed: {', '.join(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[parts[0]] if by_split else "train"


def check_format(where: str, name: str, remedy: str) -> None:
    """Check that a file's name is one of a PNG or JPEG file.

    Raises:
        UserError: names the format, if it is known, and what to do.
    """
    if not name.lower().endswith(SUFFIXES):
        known = named(name)
        raise UserError(where, known.name if known else "neither PNG nor JPEG", known.remedy if known else remedy)


def _without_images(plan: dict[str, list[Member]], entry: DatasetEntry) -> list[UserError]:
    found = []
    for split, members in plan.items():
        present = {member.label for member in members}
        missing = [name for label, name in enumerate(entry.classes) if label not in present]
        if missing:
            found.append(UserError("source", entry.source, f"no {split} images in class(es) {', '.join(missing)}"))
    return found
