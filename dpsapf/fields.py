"""Dataclass fields that carry their help, unit and range: one declaration for CLI, schema and check."""

import dataclasses
import types
import typing
from pathlib import Path

from dpsapf.errors import UserError

MISSING = dataclasses.MISSING


def setting(
    help: str,
    default: object = MISSING,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> typing.Any:  # noqa: ANN401 - a dataclass field takes the type of its annotation
    """Declare a field with its meaning.

    Args:
        help: one line for ``--help`` and the schema.
        default: the default; required if missing.
        unit: physical or counting unit, shown in ``--help``.
        low: smallest allowed value (inclusive).
        high: largest allowed value (inclusive).
        above: exclusive lower bound.
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "above": above}
    return dataclasses.field(default=default, metadata=metadata)


def source(help: str, default: object = MISSING) -> typing.Any:  # noqa: ANN401
    """Declare a file or folder that a command reads; it must exist when given."""
    return dataclasses.field(default=default, metadata={"help": help, "reads": True})


def target(help: str, default: object = MISSING) -> typing.Any:  # noqa: ANN401
    """Declare a file that a command writes."""
    return dataclasses.field(default=default, metadata={"help": help, "writes": True})


def base_type(annotation: object) -> tuple[object, bool]:
    """Split ``X | None`` into ``(X, True)``; any other annotation gives ``(annotation, False)``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return inner[0], True
    return annotation, False


def check(instance: object) -> None:
    """Check every field's range and choice.

    Raises:
        UserError: names the first field whose value is out of range or not among its choices.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        for entry in value if isinstance(value, tuple) else (value,):
            if entry is not None:
                _check_value(field, hints[field.name], entry)


def _check_value(field: dataclasses.Field, annotation: object, value: object) -> None:
    choices = choices_of(annotation)
    if choices and value not in choices:
        raise UserError(field.name, value, f"must be one of {', '.join(map(str, choices))}")
    low, high, above = (field.metadata.get(key) for key in ("low", "high", "above"))
    if low is not None and not value >= low:
        raise UserError(field.name, value, f"must be at least {low}")
    if high is not None and not value <= high:
        raise UserError(field.name, value, f"must be at most {high}")
    if above is not None and not value > above:
        raise UserError(field.name, value, f"must be greater than {above}")


def choices_of(annotation: object) -> tuple:
    """Return the allowed values of a ``Literal`` (also inside ``tuple[Literal, ...]``), else ``()``."""
    inner, _ = base_type(annotation)
    if typing.get_origin(inner) is tuple:
        inner = typing.get_args(inner)[0]
    return typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()


def schema_of(cls: type) -> dict:
    """Build the closed JSON schema of a dataclass from its annotations and field metadata."""
    hints = typing.get_type_hints(cls)
    properties, required = {}, []
    for field in dataclasses.fields(cls):
        properties[field.name] = _field_schema(field, hints[field.name])
        if field.default is MISSING and field.default_factory is MISSING:
            required.append(field.name)
    return {
        "type": "object",
        "description": (cls.__doc__ or "").strip().split("\n")[0],
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _field_schema(field: dataclasses.Field, annotation: object) -> dict:
    schema = type_schema(annotation)
    bounds = {"minimum": "low", "maximum": "high", "exclusiveMinimum": "above"}
    numbers = {word: field.metadata.get(key) for word, key in bounds.items()}
    holder = schema["items"] if schema.get("type") == "array" else schema
    holder.update({word: value for word, value in numbers.items() if value is not None})
    if field.metadata.get("help"):
        unit = field.metadata.get("unit")
        schema["description"] = field.metadata["help"] + (f" [{unit}]" if unit else "")
    if field.default is not MISSING:
        schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    return schema


def type_schema(annotation: object) -> dict:
    """Translate one annotation: scalars, ``Literal``, ``X | None``, tuples, dicts, dataclasses."""
    inner, optional = base_type(annotation)
    schema = _plain_schema(inner)
    if optional and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    elif optional:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _plain_schema(inner: object) -> dict:
    scalars = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string", dict: "object"}
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": type_schema(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": type_schema(args[1])}
    if dataclasses.is_dataclass(inner):
        return schema_of(inner)
    return {"type": scalars[inner]}


def build(cls: type, data: dict) -> typing.Any:  # noqa: ANN401
    """Make a dataclass from parsed JSON or YAML whose shape a schema has already accepted."""
    hints = typing.get_type_hints(cls)
    values = {name: _convert(hints[name], value) for name, value in data.items()}
    return cls(**values)


def _convert(annotation: object, value: object) -> object:
    inner, _ = base_type(annotation)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if value is None:
        return None
    if dataclasses.is_dataclass(inner):
        return build(inner, value)
    if origin is tuple:
        return tuple(_convert(args[0], entry) for entry in value)
    if origin is dict:
        return {key: _convert(args[1], entry) for key, entry in value.items()}
    return inner(value) if inner in (float, Path) else value
