"""A user's tables of image files: what each shows, and who it is of."""

from pathlib import Path

import pandas as pd

from dpsapf.support.errors import UserError
from dpsapf.support.names import composed


def read_labels(path: Path) -> pd.DataFrame:
    """Read the label of each image, and its split if the table tells it.

    Args:
        path: CSV with columns ``file`` (a name in the source) and ``label`` (a class name), and maybe ``split``; further
            columns are passed over.

    Returns:
        Columns ``file`` and ``label``, in Unicode's composed form, and ``split``, which is ``train`` if the table has none.

    Raises:
        UserError: the file cannot be read, lacks a column, or names an image twice.
    """
    table = _read("labels", path, "label")
    table["label"] = table["label"].map(composed)
    return (table if "split" in table else table.assign(split="train"))[["file", "label", "split"]]


def read_users(path: Path, names: list[str]) -> dict[str, str]:
    """Read who each image is of.

    Args:
        path: CSV with columns ``file`` (a name in the source) and ``user``; further columns and files are passed over.
        names: files that need a user, in Unicode's composed form.

    Raises:
        UserError: the file cannot be read, lacks a column, or names no user, or two, for an image.
    """
    table = _read("users", path, "user")
    users = dict(zip(table["file"], table["user"], strict=True))
    without = [name for name in names if not users.get(name)]
    if without:
        raise UserError("users", str(path), f"names no user for {without[0]} ({len(without)} image(s) in all): add rows")
    return users


def _read(key: str, path: Path, column: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(key, str(path), f"must be a readable CSV with columns file and {column} ({error})") from error
    missing = {"file", column} - set(table.columns)
    if missing:
        raise UserError(key, str(path), f"lacks column(s) {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    table["file"] = table["file"].map(composed)
    twice = table["file"][table["file"].duplicated()]
    if len(twice):
        raise UserError(key, str(path), f"names {twice.iloc[0]} more than once: give each image one row")
    return table
