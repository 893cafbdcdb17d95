"""The tidy tables of a results folder, and which of their rows a figure compares."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from dpsapf.aggregation.aggregate import SELECTION_COLUMNS
from dpsapf.aggregation.schema import check_runs, check_summary
from dpsapf.experiment import records
from dpsapf.experiment.columns import CERTIFIERS, INTERVAL, MEAN, MISSING, NEARLY, SEEDS, SPENT_PREFIX, STATUS
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import FRAGILITY, METHODS, TRAINING_AXES
from dpsapf.experiment.runs import RunSpec, Study, number, written
from dpsapf.support.errors import UserError
from paper_figures.style import EXTERNAL, ORDER, look_of

GROUP = ["dataset", "public_model"]
TRAINING = {name for name, row in METHODS.items() if row.trains}
CHOICES = ("score", "mechanism", "rule", "candidates", "adapter")  # axes that a figure holds at the value that most runs have

CEILING = "ceiling"  # series of method proxy where the private images themselves choose without noise
NAMED = 3  # missing runs that a note names
SEEDED = "Noise from a seed: reproducible, not for release; whoever knows the seed can subtract it."


CLAIMED = f"ε of other groups' methods is {records.CLAIMED}."


class MissingStudy(Exception):
    """A figure's runs are not among the results; the message says which study would make it."""


@dataclass(frozen=True)
class Results:
    """The tables of one config's results.

    Attributes:
        layout: where the config's files are.
        runs: one row per complete run (of runs.csv).
        summary: one row per setting that has a complete run, over its seeds (of summary.csv).
        selections: one row per run and candidate matrix (selections.csv).
        missing: one row per run that the config has and that is not there (of runs.csv).
        lost: one row per setting none of whose runs is there (of summary.csv).
    """

    layout: Layout
    runs: pd.DataFrame
    summary: pd.DataFrame
    selections: pd.DataFrame
    missing: pd.DataFrame = field(default_factory=pd.DataFrame)
    lost: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def headline(self) -> dict[str, float]:
        """The ratio, sigma_s and epsilon that most runs have; a tie goes to the `Study` default, then to the least."""
        return {axis: _commonest(self.runs[axis], axis) for axis in ("ratio", "sigma_s", "epsilon")}

    @property
    def release_note(self) -> str:
        """Say whether what this suite trained under an epsilon may be published; empty if all of it may."""
        ours = self.runs[self.runs["method"] != "external"]
        held = ours["not_for_release"].isna() if "not_for_release" in ours else False
        return "" if (held | ours["epsilon"].isna()).all() else SEEDED

    @property
    def claim_note(self) -> str:
        """Say whose epsilon is claimed only; empty if there are no images of other groups."""
        return CLAIMED if self.elsewhere else ""

    @cached_property
    def elsewhere(self) -> dict[str, str]:
        """Methods of other groups: their names in the config, in the order of the runs, the missing last, and their labels.

        Raises:
            UserError: there are more of them than looks.
        """
        rows = self.expected[self.expected["method"] == "external"]
        labels = {} if rows.empty else dict(zip(rows["external"], rows["label"], strict=True))
        if len(labels) > len(EXTERNAL):
            raise UserError(
                "external", len(labels), f"figures tell {len(EXTERNAL)} methods of other groups apart: split the config"
            )
        return labels

    @property
    def expected(self) -> pd.DataFrame:
        """The runs that are there, and those that are missing."""
        return pd.concat([self.runs, self.missing.dropna(axis="columns", how="all")])

    @property
    def spent_note(self) -> str:
        """Say which target epsilons clearly less was spent of, and how much; empty if nearly all of each was."""
        certified = self.runs.reindex(columns=[SPENT_PREFIX + name for name in CERTIFIERS]).max(axis=1)
        less = certified[certified < NEARLY * self.runs["epsilon"]].groupby(self.runs["epsilon"]).agg(["min", "max"])
        told = [
            f"{' to '.join(dict.fromkeys(f'{value:.4g}' for value in spent))} of target ε {number(target)}"
            for target, spent in zip(less.index, less.to_numpy(), strict=True)
        ]
        return f"Spent: {', '.join(told)}; docs/privacy.md says why." if told else ""

    @property
    def missing_note(self) -> str:
        """Say how many runs are missing, and name the first ones; empty if none is."""
        if self.missing.empty:
            return ""
        names = [*self.missing["run_id"][:NAMED], *(["..."] if len(self.missing) > NAMED else [])]
        return f"Missing: {len(self.missing)} of {len(self.runs) + len(self.missing)} runs ({', '.join(names)})."

    @property
    def protocol(self) -> str:
        """The one evaluation protocol of all runs."""
        return self.runs["protocol"].iloc[0]


def load_results(root: Path, selections_needed: bool = True) -> Results:
    """Read ``<root>/tables/{runs,summary,selections}.csv``.

    Args:
        root: folder of one config's results.
        selections_needed: False to take selections.csv as empty where it is not there: kept results may lack it.

    Raises:
        UserError: a table is missing, has no rows of runs, or has a value that its schema does not allow.
    """
    layout = Layout(root)
    paths = {name: Path(layout.table(f"{name}.csv")) for name in ("runs", "summary", "selections")}
    lacking = not selections_needed and not paths["selections"].exists()
    tables = {name: _read(path) for name, path in paths.items() if not (lacking and name == "selections")}
    tables.setdefault("selections", pd.DataFrame(columns=SELECTION_COLUMNS))
    tables = {name: with_axes(table) for name, table in tables.items()}
    if tables["runs"].empty:
        raise UserError("--results", str(root), "its tables/runs.csv has no runs; run `dpsapf aggregate`")
    check_runs(tables["runs"], paths["runs"])
    check_summary(tables["summary"].drop(columns="seed"), paths["summary"])
    return Results(layout, **_without_missing(tables))


def _without_missing(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    runs, summary = tables["runs"], tables["summary"]
    missing = runs[STATUS] == MISSING if STATUS in runs else pd.Series(False, runs.index)
    lost = summary[SEEDS] == 0
    return tables | {"runs": runs[~missing], "missing": runs[missing], "summary": summary[~lost], "lost": summary[lost]}


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise UserError("--results", str(path), "does not exist; run `dpsapf aggregate` or the workflow first")
    return pd.read_csv(path, low_memory=False)  # a column's type from all of its rows


def with_axes(table: pd.DataFrame) -> pd.DataFrame:
    """Add the axes of runs that a table of an earlier version does not have, empty: nothing was chosen there.

    A sigma_s that is a number is one, also beside ``auto``.
    """
    axes = [axis for axis in RunSpec.model_fields if axis not in table]
    table = table.assign(**dict.fromkeys(axes, float("nan")))
    numbers = pd.to_numeric(table["sigma_s"], errors="coerce")
    return table.assign(sigma_s=numbers.where(numbers.notna(), table["sigma_s"]))


def _commonest(values: pd.Series, axis: str) -> float | str | None:
    counts = values.value_counts()
    tied = sorted(counts.index[counts == counts.max()], key=lambda value: (isinstance(value, str), value))
    default = Study.model_fields[axis].default[0]
    return default if default in tied or not tied else tied[0]


def at_headline(table: pd.DataFrame, results: Results, *axes: str) -> pd.DataFrame:
    """Keep, of the rows that differ in an axis alone, the one at its headline value; all of them if none is.

    Args:
        table: rows with the axes of runs.
        results: gives the headline values.
        axes: of ``ratio``, ``sigma_s``, ``epsilon``, in this order.
    """
    return near_headline(_same_choices(table, results), results, *axes)


def near_headline(table: pd.DataFrame, results: Results, *axes: str) -> pd.DataFrame:
    """Do what `at_headline` does with rows whose other choices are held already."""
    for axis in axes:
        others = [
            *GROUP,
            "method",
            *_external(table),
            "level",
            *(name for name in ("ratio", "sigma_s", "epsilon") if name not in axes),
        ]
        at_value = table[axis].isna() | (table[axis] == results.headline[axis])
        some = at_value.groupby([table[name] for name in others], dropna=False).transform("any")
        table = table[at_value | ~some]
    return table


def _external(table: pd.DataFrame) -> list[str]:
    """Name the column that tells other groups' methods apart; tables of before there were any have none."""
    return ["external"] if "external" in table else []


def strictly(table: pd.DataFrame, results: Results, *axes: str) -> pd.DataFrame:
    """Keep the rows whose axes are at the headline values, or empty because their method ignores the axis."""
    table = _same_choices(table, results)
    for axis in axes:
        table = table[table[axis].isna() | (table[axis] == results.headline[axis])]
    return table


def _same_choices(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    return hold(table, results, CHOICES, TRAINING_AXES)


def hold(table: pd.DataFrame, results: Results, choices: Sequence[str], training: Sequence[str]) -> pd.DataFrame:
    """Keep the rows at one value of some axes.

    Args:
        table: rows with the axes of runs.
        results: gives the values that most runs have.
        choices: of `CHOICES`: held at that value; a row without one stays.
        training: of `TRAINING_AXES`: held at the config's own value (empty), or at the commonest if no run has that.
    """
    for axis in choices:
        table = table[table[axis].isna() | (table[axis] == _commonest(results.runs[axis], axis))]
    for axis in training:
        own = table[axis].isna()
        table = table[own if own[table["method"].isin(TRAINING)].any() else own | (table[axis] == _commonest(table[axis], axis))]
    return table


def rows_of(table: pd.DataFrame, dataset: str, public_model: str) -> pd.DataFrame:
    """Keep the rows of one dataset and public model."""
    return table[(table["dataset"] == dataset) & (table["public_model"] == public_model)]


def with_spent_note(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Add ``spent_note`` to what a table or figure shows, if there is something to say."""
    return rows.assign(spent_note=results.spent_note) if results.spent_note else rows


def spent_note_of(data: pd.DataFrame) -> str:
    """Return what `with_spent_note` added; empty if nothing."""
    return data["spent_note"].iloc[0] if "spent_note" in data else ""


def with_labels(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Add ``series`` (a key of `paper_figures.style.LOOKS`) and ``label``; sort by dataset, model, series and epsilon.

    Datasets and models stand in the order of the runs, series in the order of ``LOOKS``.
    """
    rows = table.to_dict("records")
    named = table.assign(series=[_numbered(row, results) for row in rows], label=[label(row, results.headline) for row in rows])
    orders = {"series": list(ORDER)} | {axis: list(results.runs[axis].unique()) for axis in GROUP}
    by = [*GROUP, "series", "epsilon"]
    return named.sort_values(by, key=lambda column: column.map(orders[column.name].index) if column.name in orders else column)


def series(row: dict[str, typing.Any]) -> str:
    """Name the line, colour and marker of a run: its method, or what it selects by, and, if it selects, its level."""
    name = row["method"]
    if name == "proxy":
        name = {row["dataset"]: CEILING, FRAGILITY: FRAGILITY}.get(row["proxy"], name)
    return name if pd.isna(row["level"]) else f"{name}-{row['level']}"


def _numbered(row: dict[str, typing.Any], results: Results) -> str:
    """Name a run's series; those of other groups' methods by their order among the runs."""
    if row["method"] != "external":
        return series(row)
    return list(EXTERNAL)[list(results.elsewhere).index(row["external"])]


def name_of(series: str, results: Results) -> str:
    """Name a series for a reader: another group's method by its label, and that its epsilon, if any, is claimed only."""
    if series not in EXTERNAL:
        return look_of(series).label
    name, text = list(results.elsewhere.items())[list(EXTERNAL).index(series)]
    return _claimed(text, results.expected.loc[results.expected["external"] == name, "epsilon"].max())


def _claimed(text: str, epsilon: float) -> str:
    return f"{text}, {'made elsewhere' if pd.isna(epsilon) else 'ε claimed'}, not audited"


def label(row: dict[str, typing.Any], headline: dict[str, float]) -> str:
    """Name a run's method for a reader, with its ratio, and with sigma_s where it is not the headline's."""
    if row["method"] == "external":
        return _claimed(row["label"], row["epsilon"])
    text = look_of(series(row)).label
    if series(row).startswith("proxy"):
        text = f"{text} ({row['proxy']})"
    if pd.notna(row["ratio"]):
        text += f" {number(100 * row['ratio'])} %"
    if pd.notna(row["sigma_s"]) and row["sigma_s"] != headline["sigma_s"]:
        text += f", σ_s = {written(row['sigma_s'])}"
    return text


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Turn rows of the summary into what is drawn: accuracy in %, FID, both with their 95 % half widths."""
    return pd.DataFrame(
        {
            SEEDS: table[SEEDS],
            "accuracy_pct": 100 * table["accuracy" + MEAN],
            "accuracy_pct" + INTERVAL: 100 * table["accuracy" + INTERVAL],
            "fid": table["fid" + MEAN],
            "fid" + INTERVAL: table["fid" + INTERVAL],
        }
    )


def floor_and_ceiling(results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    """Return the public model as it is, if it was run, and classifiers trained on real images, which have no FID.

    Returns:
        At most two rows with ``series``, ``label`` and the columns of `scores`.
    """
    summary = rows_of(results.summary, dataset, public_model)
    floor = with_labels(summary[summary["method"] == "no-finetune"], results)
    floor = pd.concat([floor[["series", "label"]], scores(floor)], axis=1)
    accuracy = results.runs.loc[results.runs["dataset"] == dataset, "ceiling_accuracy"].iloc[0]
    real = {"series": "real", "label": look_of("real").label, "accuracy_pct": 100 * accuracy}
    return pd.DataFrame([real, *floor.to_dict("records")], columns=floor.columns)
