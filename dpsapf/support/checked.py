"""The base of every setting, registry entry and record: frozen, closed, checked; and mistakes told in one line each."""

import json
import re
import types
import typing

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpsapf.support.errors import UserError, UserErrors, one_of

Kind = typing.TypeVar("Kind", bound="Checked")
Loc = tuple[int | str, ...]
WANTS_A_NUMBER = ("float_type", "int_type", "float_parsing", "int_parsing")
WORDING = {
    "Input should be": "must be",
    "String should": "must",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
EXPONENT = re.compile(r"[+-]?\d+[eE][+-]?\d+")  # YAML 1.1 wants a point in it


class Checked(BaseModel):
    """A pydantic model that cannot be changed, knows no other keys, and takes no nan and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def gone(empty: object) -> typing.Any:  # noqa: ANN401 - as pydantic's Field
    """Declare a key that earlier versions wrote. It is read where it says nothing, else refused, and never written.

    Args:
        empty: what it was where it said nothing.
    """
    return Field(empty, exclude=True)


def replace(model: Kind, /, **changes: object) -> Kind:
    """Return a copy with some fields changed, checked as a new one."""
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    return type(model)(**(fields | changes))


def parse(cls: type[Kind], data: object, where: str) -> Kind:
    """Make a model from parsed YAML or JSON, without guessing types: ``"1"`` is no number.

    Args:
        cls: what to make.
        data: what was parsed.
        where: the file, for errors.

    Raises:
        UserErrors: a line for every mistake: file, key, value, remedy.
    """
    try:
        return cls.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UserErrors(mistakes(cls, error, lambda loc: f"{where}: {dotted(loc)}")) from None


def mistakes(cls: type[Checked], error: ValidationError, key: typing.Callable[[Loc], str]) -> list[UserError]:
    """Tell each of pydantic's errors in one line.

    Args:
        cls: the model that was to be made.
        error: what pydantic raised.
        key: place in the model -> what the user calls it.
    """
    rows = error.errors(include_url=False)
    # a tuple whose entries are wrong is also too short: only the entries are told
    followed = {row["loc"][:end] for row in rows for end in range(len(row["loc"]))}
    return [UserError(key(row["loc"]), _value(row), _remedy(cls, row)) for row in rows if row["loc"] not in followed]


def dotted(loc: Loc) -> str:
    """Write a place in a model as in ``privacy.steps``."""
    return ".".join(map(str, loc)) or "(top level)"


def _value(row: dict) -> object:
    if row["type"] == "missing":
        return None
    return "..." if isinstance(row["input"], dict | list) and row["type"] == "extra_forbidden" else row["input"]


def _remedy(cls: type[Checked], row: dict) -> str:
    *parents, name = row["loc"] or ("",)
    if row["type"] == "extra_forbidden":
        return "unknown key: " + one_of(name, _inner(cls, parents).model_fields)
    if (field := _inner(cls, parents).model_fields.get(name)) and field.exclude:
        return "an earlier version wrote this, and this one does not know what it says: go on with that version"
    if row["type"] == "missing":
        return f"is required: {_inner(cls, parents).model_fields[name].description or name}"
    if row["type"] == "too_short":
        return "needs at least one value"
    if row["type"] == "literal_error":
        return one_of(row["input"], re.findall(r"[^\s',]+", row["ctx"]["expected"].replace(" or ", ", ")))
    remedy = row["msg"]
    for theirs, ours in WORDING.items():
        remedy = remedy.replace(theirs, ours)
    if row["type"] in WANTS_A_NUMBER and isinstance(row["input"], str) and EXPONENT.fullmatch(row["input"]):
        remedy += "; YAML reads an exponent without a point as text: write 1.0e-3 for 1e-3"
    return remedy


def _inner(cls: type[Checked], loc: typing.Sequence[int | str]) -> type[Checked]:
    """Find the model at a place inside another: through fields, optional values, tuples and dictionaries."""
    for name in loc:
        if isinstance(name, str) and name in cls.model_fields:
            cls = _model_in(cls.model_fields[name].annotation) or cls
    return cls


def _model_in(annotation: object) -> type[Checked] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Checked):
        return annotation
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
