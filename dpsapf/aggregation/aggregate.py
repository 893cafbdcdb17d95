"""aggregate: tidy tables over all runs; records of different evaluation protocols are never mixed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from dpsapf.aggregation.schema import PREFIXES, check_runs, check_summary
from dpsapf.experiment.columns import (
    BLOCK,
    COMPLETE,
    EXPECTED,
    INTERVAL,
    LAYER,
    MATRIX,
    MEAN,
    MISSING,
    OPTIONAL_METRICS,
    PROJECTION,
    SCORE,
    SD,
    SEEDS,
    SELECTED,
    SPREAD_METRICS,
    STATUS,
)
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import CLAIMED, Metrics
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import parse_config
from dpsapf.experiment.stages import Aggregate
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.records import as_json, read_record
from dpsapf.support.yaml_files import load_yaml

LOG = logging.getLogger(__name__)
AXES = list(RunSpec.model_fields)
SETTING = [axis for axis in AXES if axis != "seed"]
SELECTION_COLUMNS = [MATRIX, LAYER, BLOCK, PROJECTION, SCORE, SELECTED]
TOLD = ["label", "claim"]  # of methods whose images were made elsewhere
CONFIDENCE = 0.95


def aggregate(options: Aggregate) -> None:
    """Write runs.csv, summary.csv and selections.csv from every run's metrics.json and the selection.csv beside it.

    Raises:
        UserError: there is no record; the records are of different protocols, or a run comes twice, or is none of the
            config's; or a value is outside its column's range.
    """
    records = [read_record(path, Metrics) for path in options.metrics]
    check_records(records, options.metrics)
    missing = missing_runs(options.configfile, records) if options.configfile else {}
    runs = run_table(records, missing)
    summary = summary_table(runs)
    check_runs(runs, options.runs)
    check_summary(summary, options.summary)
    tables = {
        options.runs: runs,
        options.summary: summary,
        options.selections: selection_table(records, options.metrics),
    }
    for path, table in tables.items():
        with atomic(path) as temporary:
            table.to_csv(temporary, index=False)
    LOG.info("%d runs under protocol %s%s", len(records), records[0].protocol, f", {len(missing)} missing" if missing else "")
    for run in missing:
        LOG.warning("missing: %s", run.id)


def check_records(records: Sequence[Metrics], paths: Sequence[Path]) -> None:
    """Check that records can be compared: one protocol of one meaning, one reference per dataset, every run once.

    Raises:
        UserError: names the first record that differs from those before it; or there is none.
    """
    if not records:
        raise UserError("--metrics", None, "no run has metrics: give at least one")
    seen: dict[str, Path] = {}
    references: dict[str, tuple[str, Path]] = {}
    for record, path in zip(records, paths, strict=True):
        if record.protocol != records[0].protocol:
            remedy = f"{paths[0]} has protocol {records[0].protocol}: never mix protocols, evaluate all runs with one"
            raise UserError(f"{path}: protocol", record.protocol, remedy)
        if record.protocol_digest != records[0].protocol_digest:
            remedy = f"in {paths[0]} {record.protocol} means {records[0].protocol_digest}: evaluate all runs again"
            raise UserError(f"{path}: protocol_digest", record.protocol_digest, remedy)
        reference, first = references.setdefault(record.run.dataset, (record.reference, path))
        if record.reference != reference:
            remedy = f"{first} was compared with other features of {record.run.dataset}: evaluate all runs with one file of them"
            raise UserError(f"{path}: reference", record.reference, remedy)
        if record.run_id in seen:
            raise UserError(f"{path}: run_id", record.run_id, f"is also in {seen[record.run_id]}: give every run once")
        seen[record.run_id] = path


def missing_runs(configfile: Path, records: Sequence[Metrics]) -> dict[RunSpec, str | None]:
    """Find the runs of a config that have no record, in its order, and the labels of those made elsewhere.

    Raises:
        UserError: the config is wrong, or a record is of no run of it.
    """
    config = parse_config(load_yaml(configfile), str(configfile))
    expected, elsewhere = {run.id: run for run in config.runs}, config.made_elsewhere
    for record in records:
        if record.run_id not in expected:
            raise UserError(
                "--metrics", record.run_id, f"is no run of {configfile}: leave it out, or give the config that it is of"
            )
    done = {record.run_id for record in records}
    labels = {name: method.label for name, (_, method, _) in elsewhere.items()}
    return {run: labels.get(name) for name, run in expected.items() if name not in done}


def run_table(records: Sequence[Metrics], missing: Mapping[RunSpec, str | None] | None = None) -> pd.DataFrame:
    """Make one row per run, in the order given, the missing ones last, as `missing_runs` finds them.

    Returns:
        ``run_id``, ``status``, the run's axes, then every scalar field of `Metrics` in its unit (accuracies and
        precision/recall in [0, 1], times in seconds, memory in MB), ``accuracy_of_<classifier>`` and
        ``spent_epsilon_<accountant>``. What a method does not have is empty; of a missing run all is but its axes, the
        protocol of the others and, if it was made elsewhere, its label and what its epsilon is.
    """
    lost = [
        {"run_id": run.id, STATUS: MISSING, **dict(run), "protocol": records[0].protocol}
        | ({"label": label, "claim": CLAIMED} if label else {})
        for run, label in (missing or {}).items()
    ]
    return pd.DataFrame([_run_row(record) for record in records] + lost)


def _run_row(record: Metrics) -> dict[str, object]:
    fields = as_json(record)
    row = {"run_id": fields.pop("run_id"), STATUS: COMPLETE, **fields.pop("run")}
    for name, value in fields.items():
        if name in PREFIXES:
            row |= {PREFIXES[name] + key: entry for key, entry in value.items()}
        elif name != "outside_the_guarantee":
            row[name] = value
    return row


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Group runs over their seeds.

    Args:
        runs: as `run_table` returns.

    Returns:
        One row per setting: its axes, the protocol, ``n`` (complete runs), ``expected``, of methods made elsewhere the label and
        what their epsilon is, and of each metric the mean, the sample standard deviation and the half width of the 95 % interval
        of the mean, t_{0.975, n-1} sd / sqrt(n) (Student, for normal seeds). A single seed has no spread: ``sd`` and interval
        are empty, not 0; so is the mean of none, or of a metric that a complete run lacks.
    """
    optional = [name for name in OPTIONAL_METRICS if name in runs and runs[name].notna().any()]
    measured = [name for name in (*SPREAD_METRICS, *optional) if name in runs]
    known = {metric: pd.to_numeric(runs[metric]) for metric in measured}  # all empty: no object
    axes = [axis for axis in SETTING if axis in runs]
    groups = runs.assign(**known).groupby([*axes, "protocol"], dropna=False, sort=False)
    summary = groups["accuracy"].count().rename(SEEDS).reset_index()
    summary[EXPECTED] = groups.size().to_numpy()
    for name in [name for name in TOLD if name in runs]:
        summary[name] = groups[name].first().to_numpy()
    for metric in known:
        values, of_all = groups[metric], groups[metric].count() == groups["accuracy"].count()
        summary[metric + MEAN] = values.mean().where(of_all).to_numpy()
        summary[metric + SD] = values.std(ddof=1).where(of_all).to_numpy()
        summary[metric + INTERVAL] = summary[metric + SD] * interval_factor(summary[SEEDS])
    return summary


def interval_factor(n: pd.Series) -> pd.Series:
    """Return t_{0.975, n-1} / sqrt(n) for counts ``n`` (int); empty where n = 1."""
    several = n.where(n > 1)
    return stats.t.ppf((1 + CONFIDENCE) / 2, several - 1) / several**0.5


def selection_table(records: Sequence[Metrics], paths: Sequence[Path]) -> pd.DataFrame:
    """Stack the selections of the runs that have one.

    Returns:
        One row per run and candidate matrix, in UNet order: ``run_id``, the run's axes, matrix, layer, block,
        projection, released noisy score (empty if none was released), and whether it was selected.

    Raises:
        UserError: a run trains and no selection.csv stands beside its metrics.json.
    """
    columns = ["run_id", *AXES, *SELECTION_COLUMNS]
    files = [(record, path.with_name("selection.csv")) for record, path in zip(records, paths, strict=True)]
    tables = [_selection(record, path)[columns] for record, path in files if method(record.run.method).trains]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _selection(record: Metrics, path: Path) -> pd.DataFrame:
    if not path.exists():
        raise UserError("selection.csv", str(path), f"run {record.run_id} trains: its selection must stand beside its metrics")
    return pd.read_csv(path).assign(run_id=record.run_id, **dict(record.run))
