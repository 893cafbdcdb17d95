"""Fields of a stage's options: files that it reads or writes; and what its result depends on."""

import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from dpsapf.experiment.settings import ComputeConfig
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json

READS, WRITES = {"role": "reads"}, {"role": "writes"}
GIVEN = ("configfile", "registry", "captions", "images", "prior", "results")  # what no stage writes
ROUNDING = {*ComputeConfig.model_fields, "checkpoint_every", "gradient_checkpointing"}


Kind = typing.Literal["file", "folder", "file or folder"]


def source(help: str, default: object = ..., *, kind: Kind = "file") -> typing.Any:  # noqa: ANN401 - a field takes the type of its annotation
    """Declare what a stage reads; it must exist when given, and be of its kind."""
    return Field(default, description=help, json_schema_extra=READS, title=kind)


def target(help: str, default: object = ..., *, kind: Kind = "file") -> typing.Any:  # noqa: ANN401
    """Declare what a stage writes; what is there must be of its kind."""
    return Field(default, description=help, json_schema_extra=WRITES, title=kind)


def wrong_paths(options: Checked) -> Iterator[UserError]:
    """Find what a stage reads and is not there, folders in the place of files or the other way round, and equal paths."""
    reads = paths(options, READS)
    yield from _equal_paths(reads, paths(options, WRITES))
    for name, files in (reads | paths(options, WRITES)).items():
        field, option = type(options).model_fields[name], _option(name)
        for path in files:
            kind = field.title or "file"
            if path.exists() and kind in ("file", "folder") and path.is_dir() != (kind == "folder"):
                found, due = ("folder", "file") if path.is_dir() else ("file", "folder")
                yield UserError(option, str(path), f"is a {found}, and a {due} is due: {field.description}")
            elif name in reads and not path.exists():
                yield UserError(option, str(path), _remedy(name, path, field.default))
            elif name not in reads:
                yield from below_a_file(option, path)


def below_a_file(option: str, path: Path) -> Iterator[UserError]:
    """Find a path that cannot be written since one of its folders is a file."""
    yield from (
        UserError(option, str(path), f"{above} is a file: name a path in a folder") for above in path.parents if above.is_file()
    )


def _equal_paths(reads: dict[str, list[Path]], writes: dict[str, list[Path]]) -> Iterator[UserError]:
    known = {path.resolve(): name for name, files in reads.items() for path in files}
    for name, files in writes.items():
        for path in files:
            other = known.setdefault(path.resolve(), name)
            if other != name:
                yield UserError(_option(name), str(path), f"is the path of {_option(other)}, too: give it one of its own")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _remedy(name: str, path: Path, default: object) -> str:
    if path == default:
        return "does not exist here: give its path, or run the command in the folder of the checkout, which has it"
    if name in GIVEN:
        return "does not exist: give the path of a file or folder that is there"
    return "does not exist; run the stage that writes it first"


def paths(options: Checked, role: dict[str, str]) -> dict[str, list[Path]]:
    """Map the fields of a stage's options that it reads (`READS`) or writes (`WRITES`) to their paths; given ones only."""
    named = {
        name: getattr(options, name) for name, field in type(options).model_fields.items() if field.json_schema_extra == role
    }
    return {name: list(value) if isinstance(value, tuple) else [value] for name, value in named.items() if value is not None}


def settings(options: Checked) -> dict[str, object]:
    """Say what a stage's result depends on: the contents of what it reads, and its settings.

    Left out is where files stand, and what may change the result by rounding only, on another device also by other draws of
    the same law.
    """
    return asked(options) | {name: [f"digest {sha256(file)}" for file in files] for name, files in paths(options, READS).items()}


def asked(options: Checked) -> dict[str, object]:
    """Say what a stage's result depends on besides the files that it reads: see `settings`."""
    files = paths(options, READS) | paths(options, WRITES)
    return {name: value for name, value in as_json(options).items() if name not in {*ROUNDING, *files}}
