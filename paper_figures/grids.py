"""Tables of the report: cells with what they sort by, made from tidy tables, ledgers and the Markdown of drawn tables."""

import itertools
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from markdown_it import MarkdownIt

from dpsapf.experiment.columns import INTERVAL, MEAN, SEEDS, SPENT_PREFIX
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.records import CLAIMED, Ledger, Release
from dpsapf.experiment.runs import RunSpec
from paper_figures.results import Results, label
from paper_figures.tables import NOTHING, amount, decimals, plain

AXES = tuple(RunSpec.model_fields)
IN_THE_LABEL = ("method", "level", "ratio")
SECTION_OF_ITS_OWN = re.compile(r"(delta|target_epsilon|spent_epsilon_.*|not_for_release|selection_epsilon|noise_multiplier.*)")
LEFT_OUT = ("run_id", "protocol", "used_batch", "finetune_seconds")  # of private.json: the seconds
SHORT = {"epsilon": "ε", "fid": "FID", "kid": "KID", "sigma_s": "σ_s", "mb": "MB"}
LONG = 40  # characters of a text that is wrapped
NUMBER = re.compile(r"[<>≤≥~]?\s*([-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)")
VERDICTS = {"reproduced": "good", "not reproduced": "bad", "cannot tell at this power": "unsure", "not run": "unsure"}


@dataclass(frozen=True)
class Entry:
    """A cell: its text, what it sorts by (None: the text; empty: after every number) and its looks (a CSS class)."""

    text: str
    order: str | None = None
    look: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of the report.

    Attributes:
        caption: what a reader is told that it holds.
        header: a name per column.
        rows: equally many entries each; the first names the row.
        numbers: of each column, whether it holds numbers.
        note: a line below it.
        searched: whether it has a search box, filters and pages.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    numbers: tuple[bool, ...]
    note: str = ""
    searched: bool = False


def drawn_grid(text: str, caption: str) -> Grid:
    """Read a table that was drawn as Markdown (`paper_figures.tables.markdown`): what is right-aligned is numbers."""
    tokens = MarkdownIt("zero").enable(["table", "emphasis", "escape"]).parse(text)
    cells = [
        (before.type, "right" in str(before.attrGet("style")), token)
        for before, token in itertools.pairwise(tokens)
        if before.type in ("th_open", "td_open")
    ]
    header = [(_text(token), right) for kind, right, token in cells if kind == "th_open"]
    entries = [_drawn_entry(token, right) for kind, right, token in cells if kind == "td_open"]
    width = len(header)
    rows = tuple(tuple(entries[start : start + width]) for start in range(0, len(entries), width))
    note = " ".join(_text(token) for before, token in itertools.pairwise(tokens) if before.type == "paragraph_open")
    return Grid(caption, tuple(name for name, _ in header), rows, tuple(right for _, right in header), note)


def _text(token: typing.Any) -> str:  # noqa: ANN401 - markdown-it's tokens
    return "".join(child.content for child in token.children or ())


def _drawn_entry(token: typing.Any, is_number: bool) -> Entry:  # noqa: ANN401
    text = _text(token)
    if text in VERDICTS:
        return Entry(text, look=f"badge {VERDICTS[text]}")
    bold = any(child.type == "strong_open" for child in token.children or ())
    long = not is_number and len(text) > LONG
    return Entry(text, leading_number(text) if is_number else None, "best" if bold else "long" if long else "")


def leading_number(text: str) -> str:
    """Return the number that a cell begins with (``71.0 ± 12.3``, ``5,504–6,144``, ``> 0.2``), or an empty text."""
    found = NUMBER.match(text)
    return found[1].replace(",", "").replace("−", "-") if found else ""


def varying(table: pd.DataFrame, axes: Iterable[str] = AXES) -> list[str]:
    """List the axes in which a table's rows differ; an empty one is told from a value where it means the config's own."""
    return [axis for axis in axes if axis in table and table[axis].nunique(dropna=axis not in TRAINING_AXES) > 1]


def common(table: pd.DataFrame) -> list[tuple[str, str]]:
    """List the axes in which all rows that have one are alike, with their values."""
    same = [axis for axis in AXES if axis in table and axis not in varying(table) and table[axis].notna().any()]
    return [(words(axis), value(table[axis].dropna().iloc[0])) for axis in same]


def words(column: str) -> str:
    """Write a column's name for a reader."""
    return SHORT.get(column) or " ".join(SHORT.get(word, word) for word in column.split("_"))


def value(entry: object) -> str:
    """Write a value: four significant digits of a number that is not whole, a dash for a missing one."""
    if isinstance(entry, float) and pd.notna(entry):
        return plain(entry) if entry == int(entry) and abs(entry) < 1e6 else f"{entry:.4g}"
    return NOTHING if pd.isna(entry) else f"{entry:,}" if isinstance(entry, int) and not isinstance(entry, bool) else str(entry)


def run_grid(runs: pd.DataFrame, results: Results, caption: str) -> Grid:
    """Show runs (rows of runs.csv): the axes in which they differ, then every score and cost that one of them has."""
    scores = [name for name in runs if name not in (*AXES, *LEFT_OUT) and not SECTION_OF_ITS_OWN.fullmatch(name)]
    columns = [*_told(runs), *(name for name in scores if runs[name].notna().any() and runs[name].dtype != object)]
    places = {name: _places(runs[name]) for name in scores if name in columns and pd.api.types.is_float_dtype(runs[name])}
    rows = tuple(
        (_named(row, results), *(_entry(row[name], places.get(name)) for name in columns), Entry(row["run_id"]))
        for row in _records(runs)
    )
    header = ("method", *map(words, columns), "run")
    return Grid(caption, header, rows, (False, *_are_numbers(runs, columns), False), searched=True)


def summary_grid(summary: pd.DataFrame, results: Results, caption: str) -> Grid:
    """Show settings (rows of summary.csv): the axes in which they differ, and each metric's mean ± 95 % half width."""
    metrics = [name.removesuffix(MEAN) for name in summary if name.endswith(MEAN)]
    metrics = [name for name in metrics if summary[name + MEAN].notna().any()]
    axes, places = _told(summary), {name: _places(summary[name + MEAN]) for name in metrics}
    rows = tuple(
        (
            _named(row, results),
            *(_entry(row[axis]) for axis in axes),
            _entry(row[SEEDS]),
            *(_ordered(amount(row[name + MEAN], places[name], row[name + INTERVAL]), row[name + MEAN]) for name in metrics),
        )
        for row in _records(summary)
    )
    numbers = (False, *_are_numbers(summary, axes), True, *(True for _ in metrics))
    return Grid(caption, ("method", *map(words, axes), "seeds", *map(words, metrics)), rows, numbers, searched=True)


def ledger_grid(runs: pd.DataFrame, ledgers: dict[str, Ledger], results: Results, caption: str) -> Grid:
    """Show what each run spent: from its ledger, or what runs.csv tells of it where there is no ledger."""
    accountants = [name.removeprefix(SPENT_PREFIX) for name in runs if name.startswith(SPENT_PREFIX)]
    axes = [axis for axis in _told(runs) if axis != "epsilon"]  # which is the target
    header = ("method", *map(words, axes), "may be released as private", "target ε")
    header += (*(f"spent\u00a0ε, {name.upper()}" for name in accountants), "δ", "unit", "releases", "run")
    rows = tuple(
        (
            _named(row, results),
            *(_entry(row[axis]) for axis in axes),
            _verdict_on(row),
            *_spent(row, accountants),
            *_told_by(ledgers.get(row["run_id"])),
            Entry(row["run_id"]),
        )
        for row in _records(runs)
    )
    numbers = (False, *_are_numbers(runs, axes), False, *(True for _ in range(len(accountants) + 2)), False, False, False)
    return Grid(caption, header, rows, numbers, searched=True)


def _places(column: pd.Series) -> int:
    """Decimals of a column's four digits; none where all numbers are whole."""
    return 0 if (column.dropna() % 1 == 0).all() else min(decimals(column) + 1, 4)


def _records(table: pd.DataFrame) -> list[dict[str, typing.Any]]:
    return table.to_dict("records")


def _told(table: pd.DataFrame) -> list[str]:
    """Axes that the label does not tell, and in which rows differ."""
    return varying(table, [axis for axis in AXES if axis not in IN_THE_LABEL])


def _are_numbers(table: pd.DataFrame, columns: Sequence[str]) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(table[name]) for name in columns]


def _named(row: dict[str, typing.Any], results: Results) -> Entry:
    return Entry(label(row, results.headline))


def _entry(entry: object, places: int | None = None) -> Entry:
    if not isinstance(entry, int | float):
        return Entry(value(entry))
    return _ordered(value(entry) if places is None else amount(entry, places), entry)


def _ordered(text: str, number: float) -> Entry:
    return Entry(text, "" if pd.isna(number) else f"{number:.12g}")


def _spent(row: dict[str, typing.Any], accountants: Sequence[str]) -> list[Entry]:
    """Target, spent epsilon under each accountant, delta; a run that released nothing has none of them."""
    if pd.isna(row["delta"]):
        return [Entry(NOTHING, "") for _ in range(len(accountants) + 2)]
    target = Entry("∞", "Infinity") if pd.isna(row["target_epsilon"]) else _entry(row["target_epsilon"])
    spent = [row[SPENT_PREFIX + name] for name in accountants]
    return [target, *(_ordered(amount(number, 3), number) for number in spent), _entry(row["delta"])]


def _told_by(ledger: Ledger | None) -> tuple[Entry, Entry]:
    if ledger is None:
        return Entry(NOTHING), Entry(NOTHING)
    prior = [f"earlier: {_release(release)}" for release in ledger.prior]
    return Entry(ledger.unit), Entry("; ".join([*prior, *map(_release, ledger.releases)]) or "none", look="long")


def _release(release: Release) -> str:
    law = {
        "gaussian": f"Gaussian noise × {release.noise_multiplier:g}" if release.noise_multiplier else "Gaussian noise",
        "none": "no noise, no guarantee",
    }.get(release.mechanism, f"{release.mechanism}, ε = {release.epsilon}")
    times = "once" if release.steps == 1 else f"{release.steps:,} times"
    return f"{release.name} {times}, rate {release.sampling_rate:.3g}, {law}" + (
        f" from {release.noise}" if release.noise else ""
    )


def _verdict_on(row: dict[str, typing.Any]) -> Entry:
    if row["method"] == "external":
        return Entry(f"made elsewhere: its ε is {CLAIMED}", look="refused")
    if pd.isna(row["delta"]):
        return Entry("nothing private was released")
    if "not_for_release" not in row:  # a table that is older than this column
        return Entry("not told")
    return Entry("yes") if pd.isna(row["not_for_release"]) else Entry(f"no: {row['not_for_release']}", look="refused")
