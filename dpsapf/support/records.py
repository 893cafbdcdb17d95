"""JSON records: written atomically, read back only if they fit their model."""

import itertools
import json
import re
import sys
import typing
from pathlib import Path

from dpsapf.support.checked import Checked, parse
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import write_text

Record = typing.TypeVar("Record", bound=Checked)


def as_json(record: Checked) -> dict:
    """Turn a model into JSON-ready values (paths become strings)."""
    return record.model_dump(mode="json")


def write_record(path: Path | str, record: Checked) -> None:
    """Write a model as JSON, atomically."""
    write_text(path, json.dumps(as_json(record), indent=2) + "\n")


def lasting(folder: Path, name: str, record: Checked) -> Path:
    """Find the record in a folder that says the same but for its provenance; written there, if there is none.

    So a record that is made again keeps its digest, and none is ever written over.

    Args:
        folder: of records that stay.
        name: of the file, without its ending; a number follows where it is taken.
        record: with a field ``provenance``.
    """
    said = {key: value for key, value in as_json(record).items() if key != "provenance"}
    for number in itertools.count(1):
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not path.exists():
            write_record(path, record)
        elif _said(path) != said:
            continue
        return path


def _said(path: Path) -> dict | None:
    """Return what a record says besides its provenance; None if it cannot be read."""
    try:
        return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "provenance"}
    except ValueError:
        return None


def read_record(path: Path | str, cls: type[Record]) -> Record:
    """Read a JSON record of ``cls``.

    Raises:
        UserError: the file is not JSON, or another kind of record.
        UserErrors: it does not fit: a line for every key that does not.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        remedy = f"give the record that a stage wrote; if it is one and was damaged, delete it and run its stage again ({error})"
        raise UserError(str(path), "not JSON", remedy) from error
    try:
        return parse(cls, data, str(path))
    except UserErrors:
        if kind := _other_kind(data, cls):
            raise UserError(str(path), kind, f"a {_name(cls)} is due: give that") from None
        raise


def _other_kind(data: object, cls: type[Checked]) -> str | None:
    """Name the record, of those declared beside ``cls``, whose fields some data has; None if it may well be ``cls``."""
    keys = set(data) if isinstance(data, dict) else set()
    if keys <= set(cls.model_fields):
        return None
    for other in vars(sys.modules[cls.__module__]).values():
        if isinstance(other, type) and issubclass(other, Checked) and other.model_fields:
            needed = {name for name, field in other.model_fields.items() if field.is_required()}
            if needed <= keys <= set(other.model_fields):
                return _name(other)
    return None


def _name(cls: type[Checked]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).lower()
