"""JSON records: written atomically, read back only if they fit their model."""

import json
import typing
from pathlib import Path

from dpsapf.support.checked import Checked, parse
from dpsapf.support.errors import UserError
from dpsapf.support.files import write_text

Record = typing.TypeVar("Record", bound=Checked)


def as_json(record: Checked) -> dict:
    """Turn a model into JSON-ready values (paths become strings)."""
    return record.model_dump(mode="json")


def write_record(path: Path | str, record: Checked) -> None:
    """Write a model as JSON, atomically."""
    write_text(path, json.dumps(as_json(record), indent=2) + "\n")


def read_record(path: Path | str, cls: type[Record]) -> Record:
    """Read a JSON record of ``cls``.

    Raises:
        UserError: the file is not JSON, or does not fit: a line for every key that does not.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), "not JSON", f"delete it and run its stage again ({error})") from error
    return parse(cls, data, str(path))
