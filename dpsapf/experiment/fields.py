"""Fields of a stage's options: files that it reads or writes; and what its result depends on."""

import typing
from pathlib import Path

from pydantic import Field

from dpsapf.experiment.settings import ComputeConfig
from dpsapf.support.checked import Checked
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json

READS, WRITES = {"role": "reads"}, {"role": "writes"}
ROUNDING = {*ComputeConfig.model_fields, "checkpoint_every", "gradient_checkpointing"}


def source(help: str, default: object = ...) -> typing.Any:  # noqa: ANN401 - a field takes the type of its annotation
    """Declare a file or folder that a stage reads; it must exist when given."""
    return Field(default, description=help, json_schema_extra=READS)


def target(help: str, default: object = ...) -> typing.Any:  # noqa: ANN401
    """Declare a file or folder that a stage writes."""
    return Field(default, description=help, json_schema_extra=WRITES)


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
    told = {name: value for name, value in as_json(options).items() if name not in ROUNDING}
    for name in paths(options, WRITES):
        del told[name]
    return told | {name: [f"digest {sha256(file)}" for file in files] for name, files in paths(options, READS).items()}
