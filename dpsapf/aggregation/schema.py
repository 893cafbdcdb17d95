"""What the columns of runs.csv and summary.csv may hold: types and ranges; a mistake is one line that names row and column.

The columns are those of the records: the axes of `RunSpec` and the fields of `Metrics`. A field that is added there is a column
here; one that a table of an earlier version does not have may be absent, if it is not of `NEEDED`.
"""

import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from dpsapf.experiment.columns import (
    CLASSIFIER_PREFIX,
    COMPLETE,
    EXPECTED,
    INTERVAL,
    MEAN,
    MISSING,
    SD,
    SEEDS,
    SPENT_PREFIX,
    STATUS,
)
from dpsapf.experiment.records import Metrics
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.errors import UserError, UserErrors, one_of

AXES = tuple(RunSpec.model_fields)
NEEDED = ("run_id", "dataset", "public_model", "method", "seed", "protocol")  # columns of every version of runs.csv
MEASURED = ("accuracy", "fid")  # what a complete run has, and a missing one has not
PREFIXES = {"per_classifier": CLASSIFIER_PREFIX, "spent_epsilon": SPENT_PREFIX}  # columns of dictionaries in Metrics
SHARE, POSITIVE, ANY = (0.0, 1.0), (0.0, math.inf), (-math.inf, math.inf)
RANGES = {  # of the scalar fields of Metrics, ends included; what is not named is 0 or more
    "accuracy": SHARE,
    "fid": (-0.001, math.inf),  # rounding: of equal images it is 0
    "fid_infinity": ANY,  # extrapolated
    "kid": ANY,  # unbiased, so that it may be below 0
    "precision": SHARE,
    "recall": SHARE,
    "coverage": SHARE,
    "macro_f1": SHARE,
    "calibration_error": SHARE,
    "inception_score": (1.0, math.inf),
    "fld": ANY,
    "ceiling_accuracy": SHARE,
    "delta": SHARE,
}
Mistakes = Iterator[UserError]


def check_runs(table: pd.DataFrame, where: Path | str) -> None:
    """Check runs.csv.

    Args:
        table: as it is written, or read.
        where: its path, for the message.

    Raises:
        UserErrors: a line per wrong column: unknown, missing, of another type or out of range; an axis that no run can have,
            an id that is not of the row's axes, a run that comes twice, protocols that are mixed, a missing run with metrics.
    """
    _tell([*_columns(table, _known_of_runs, NEEDED, where), *_numbers(table, _ranges_of_runs(table), where)])
    _tell([*_axes(table, where), *_whole(table, where), *_status(table, where)])


def check_summary(table: pd.DataFrame, where: Path | str) -> None:
    """Check summary.csv.

    Raises:
        UserErrors: as `check_runs`; or more runs than were expected, or a spread of fewer than two.
    """
    ranges = {metric + MEAN: ends for metric, ends in _ranges_of_metrics().items()}
    ranges |= {metric + end: POSITIVE for metric in _ranges_of_metrics() for end in (SD, INTERVAL)}
    ranges |= {SEEDS: POSITIVE, EXPECTED: POSITIVE}
    known = {*AXES, *Metrics.model_fields, *ranges} - {"seed", "run_id"}
    _tell([*_columns(table, known.__contains__, ("dataset", "public_model", "method", SEEDS), where)])
    _tell([*_numbers(table, ranges, where)])
    _tell([*_counts(table, where)])


def _tell(mistakes: list[UserError]) -> None:
    if mistakes:
        raise UserErrors(mistakes)


def _known_of_runs(column: str) -> bool:
    return column in {STATUS, *AXES, *Metrics.model_fields} or column.startswith(tuple(PREFIXES.values()))


def _columns(table: pd.DataFrame, known: Callable[[str], bool], needed: tuple[str, ...], where: Path | str) -> Mistakes:
    for column in table:
        if not known(column):
            yield UserError(f"{where}: column", column, "is none of this table")
    for column in needed:
        if column not in table:
            yield UserError(f"{where}: column", column, "is missing; aggregate again")


def _ranges_of_runs(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    ranges = _ranges_of_metrics()
    ranges |= {name: SHARE for name in table if name.startswith(CLASSIFIER_PREFIX)}
    return ranges | {name: POSITIVE for name in table if name.startswith(SPENT_PREFIX)}


def _ranges_of_metrics() -> dict[str, tuple[float, float]]:
    numbers = [name for name, field in Metrics.model_fields.items() if _is_number(field.annotation)]
    return {name: RANGES.get(name, POSITIVE) for name in numbers}


def _is_number(annotation: object) -> bool:
    options = typing.get_args(annotation) or (annotation,)
    return bool({int, float} & set(options)) and typing.get_origin(annotation) is not dict


def _numbers(table: pd.DataFrame, ranges: dict[str, tuple[float, float]], where: Path | str) -> Mistakes:
    for name, (low, high) in ranges.items():
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name].notna() & ~(values.between(low, high) & values.abs().lt(math.inf))
        if wrong.any():
            row = wrong.idxmax()
            value = _shown(table[name][row])
            end = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}" if low > -math.inf else "finite"
            yield UserError(f"{where}: row {row + 1}, {name}", value, f"must be a number, {end}, or empty")


def _axes(table: pd.DataFrame, where: Path | str) -> Mistakes:
    axes = [axis for axis in AXES if axis in table]
    for row, values in enumerate(table[axes].to_dict("records"), 1):
        try:
            spec = RunSpec(**{axis: _plain(value) for axis, value in values.items() if not pd.isna(value)})
        except ValidationError as error:
            first = error.errors()[0]
            yield UserError(f"{where}: row {row}, {first['loc'][0]}", first["input"], first["msg"])
            return
        if spec.id != table["run_id"].iloc[row - 1]:
            yield UserError(f"{where}: row {row}, run_id", table["run_id"].iloc[row - 1], f"its axes are those of {spec.id}")
            return


def _plain(value: object) -> object:
    """Return an axis' value as a run has it: a column of numbers and words is text in a CSV, one with gaps is of floats."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else number


def _whole(table: pd.DataFrame, where: Path | str) -> Mistakes:
    twice = table["run_id"].duplicated()
    if twice.any():
        yield UserError(f"{where}: run_id", table["run_id"][twice.idxmax()], "stands twice: give every run once")
    protocols = table["protocol"].unique()
    if len(protocols) > 1:
        yield UserError(f"{where}: protocol", str(protocols[1]), f"other rows have {protocols[0]}: never mix protocols")


def _status(table: pd.DataFrame, where: Path | str) -> Mistakes:
    status = table[STATUS] if STATUS in table else pd.Series(COMPLETE, table.index)
    unknown = ~status.isin([COMPLETE, MISSING])
    if unknown.any():
        yield UserError(f"{where}: {STATUS}", status[unknown.idxmax()], one_of(status[unknown.idxmax()], (COMPLETE, MISSING)))
    for name in MEASURED:
        values = table[name] if name in table else pd.Series(math.nan, table.index)
        wrong = (values.notna() & (status == MISSING)) | (values.isna() & (status == COMPLETE))
        if wrong.any():
            row = wrong.idxmax()
            remedy = "a missing run has no metrics" if status[row] == MISSING else "a complete run has it"
            yield UserError(f"{where}: row {row + 1}, {name}", _shown(values[row]), remedy)


def _counts(table: pd.DataFrame, where: Path | str) -> Mistakes:
    if EXPECTED in table and (table[SEEDS] > table[EXPECTED]).any():
        row = (table[SEEDS] > table[EXPECTED]).idxmax()
        remedy = f"more than the {table[EXPECTED][row]} expected"
        yield UserError(f"{where}: row {row + 1}, {SEEDS}", _shown(table[SEEDS][row]), remedy)
    for name in [name for name in table if name.endswith(SD)]:
        wrong = table[name].notna() & (table[SEEDS] < 2)
        if wrong.any():
            row = wrong.idxmax()
            yield UserError(f"{where}: row {row + 1}, {name}", _shown(table[name][row]), "one run has no spread")


def _shown(value: object) -> object:
    """Return a value as Python writes it, not numpy."""
    return value.item() if isinstance(value, np.generic) else value
