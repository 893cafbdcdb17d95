import math
from pathlib import Path

import pandas as pd
import pytest

from dpsapf.aggregation.aggregate import run_table, summary_table
from dpsapf.aggregation.collect import collect_metrics
from dpsapf.aggregation.schema import check_runs, check_summary
from dpsapf.experiment.columns import SPREAD_METRICS
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Metrics
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserErrors
from dpsapf.support.records import read_record
from tests.fake_results import aggregate_options, candidate_table, write_run

ROOT = Path(__file__).parents[2]
LORA = RunSpec(dataset="digits", public_model="m", method="dp-lora", epsilon=10.0, adapter="lora", candidates="attention")
SAPF = replace(LORA, method="dp-sapf", level="matrix", ratio=0.3, score="energy", mechanism="gaussian", sigma_s=5.0, rule="top")
GONE = replace(SAPF, seed=1, training_steps=30)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    layout, runs = Layout(tmp_path_factory.mktemp("schema")), (LORA, SAPF)
    for run in runs:
        collect_metrics(write_run(layout, run, candidate_table(1)))
    lora, sapf = (read_record(path, Metrics) for path in aggregate_options(layout, runs).metrics)
    at_rates = [replace(SAPF, learning_rate=rate) for rate in ("auto", 0.5)]
    return [lora, sapf, *(replace(sapf, run=run, run_id=run.id) for run in at_rates)]


@pytest.fixture
def runs(records):
    return run_table(records, {GONE: None})


def told(check, table):
    with pytest.raises(UserErrors) as raised:
        check(table, "tables/t.csv")
    lines = str(raised.value).splitlines()
    assert all(line.startswith("tables/t.csv: ") for line in lines)
    return lines


def test_what_aggregate_writes_passes_also_after_it_was_read_again(runs, tmp_path):
    for table, check in ((runs, check_runs), (summary_table(runs), check_summary)):
        check(table, "t.csv")
        table.to_csv(tmp_path / "t.csv", index=False)
        check(pd.read_csv(tmp_path / "t.csv", low_memory=False), "t.csv")


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("results/reference/*/tables/runs.csv")), ids=str)
def test_kept_tables_of_every_version_pass(folder):
    check_runs(pd.read_csv(folder / "runs.csv", low_memory=False), folder)
    check_summary(pd.read_csv(folder / "summary.csv", low_memory=False), folder)


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("accuracy", 71.2, "tables/t.csv: row 1, accuracy = 71.2: must be a number, between 0 and 1, or empty"),
        ("accuracy_of_cnn", -0.1, "row 1, accuracy_of_cnn"),
        ("fid", -1.0, "row 1, fid = -1.0: must be a number, at least -0.001, or empty"),
        ("fid", math.inf, "row 1, fid = inf"),
        ("kid", "low", "row 1, kid = 'low': must be a number, finite, or empty"),
        ("spent_epsilon_pld", -2.0, "row 1, spent_epsilon_pld"),
        ("finetune_seconds", -1.0, "row 1, finetune_seconds"),
        ("fid", math.nan, "row 1, fid = nan: a complete run has it"),
        ("ratio", 1.5, "row 1, ratio = 1.5: Input should be less than or equal to 1"),
        ("method", "dp-sap", "row 1, method = 'dp-sap'"),
        ("seed", 3, "row 1, run_id"),
        ("run_id", "x", "row 1, run_id = 'x': its axes are those of digits--m--dp-lora"),
        ("protocol", "other-v1", "protocol = 'test-v1': other rows have other-v1: never mix protocols"),
        ("status", "complet", "status = 'complet': must be one of complete, missing; did you mean complete?"),
    ],
)
def test_a_wrong_value_is_one_line(runs, column, value, line):
    runs[column] = runs[column].astype(object)
    runs.loc[0, column] = value
    lines = told(check_runs, runs)
    assert len(lines) == 1 and line in lines[0]


def test_every_wrong_column_is_told_at_once(runs):
    runs.loc[0, ["accuracy", "fid"]] = [7.0, -7.0]
    assert len(told(check_runs, runs.assign(acuracy=1).drop(columns="protocol"))) == 4


def test_a_run_twice_is_told(runs):
    assert "stands twice" in told(check_runs, pd.concat([runs, runs.head(1)], ignore_index=True))[0]


def test_a_missing_run_with_zeros_is_refused(runs):
    assert runs["status"].tolist() == ["complete"] * 4 + ["missing"]
    runs.loc[4, "accuracy"] = 0.0
    assert "row 5, accuracy = 0.0: a missing run has no metrics" in told(check_runs, runs)[0]


@pytest.mark.parametrize("name", SPREAD_METRICS)
def test_a_metric_of_a_newer_version_may_be_absent(runs, name):
    if name not in ("accuracy", "fid"):
        check_runs(runs.drop(columns=name), "t.csv")
        summary = summary_table(runs.drop(columns=name))
        assert f"{name}_mean" not in summary
        check_summary(summary, "t.csv")


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("accuracy_mean", 50.0, "accuracy_mean = 50.0"),
        ("kid_interval95", -1.0, "kid_interval95 = -1.0"),
        ("fid_sd", 1.0, "fid_sd = 1.0: one run has no spread"),
        ("n", 2, "n = 2: more than the 1 expected"),
        ("n", "two", "n = 'two'"),
    ],
)
def test_a_wrong_summary_is_one_line(runs, column, value, line):
    summary = summary_table(runs)
    summary[column] = summary[column].astype(object)
    summary.loc[0, column] = value
    lines = told(check_summary, summary)
    assert len(lines) == 1 and line in lines[0]
