from pathlib import Path

import pytest

import dpsapf
from dpsapf.aggregation.aggregate import run_table, selection_table, summary_table
from dpsapf.aggregation.collect import gather
from dpsapf.experiment import columns
from dpsapf.experiment.columns import (
    CANDIDATES,
    CLASSIFIER_PREFIX,
    INTERVAL,
    LORA_PARAMETERS,
    MATRIX,
    MEAN,
    PARAMETERS,
    SCORE,
    SD,
    SEEDS,
    SELECTED,
    SPENT_PREFIX,
    SPREAD_METRICS,
)
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Metrics
from dpsapf.experiment.runs import RunSpec
from dpsapf.public_models.families.stable_diffusion import StableDiffusion
from tests.fake_results import candidate_table, demo_runs, write_run


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    layout, runs = Layout(tmp_path_factory.mktemp("results")), demo_runs(("mnist5k",))
    options = [write_run(layout, run, candidate_table()) for run in runs]
    return [gather(each) for each in options], [each.out for each in options]


def test_no_two_columns_have_one_name():
    names = [value for key, value in vars(columns).items() if key.isupper() and isinstance(value, str)]
    assert len(names) == len(set(names)) > 10
    assert len(set(columns.AGREEMENT_COLUMNS)) == len(columns.AGREEMENT_COLUMNS)


def test_columns_of_a_run_do_not_meet(records):
    """A classifier or accountant may have any name; the prefixes keep its column from those of Metrics."""
    changed = records[0][0].model_copy(update={"per_classifier": {"fid": 0.1, "": 0.2}, "spent_epsilon": {"kid": 3.0}})
    row = run_table([changed])
    assert row.columns.is_unique
    assert (row[CLASSIFIER_PREFIX + "fid"][0], row[CLASSIFIER_PREFIX][0], row[SPENT_PREFIX + "kid"][0]) == (0.1, 0.2, 3.0)
    assert row["fid"][0] == changed.fid
    assert not any(name.startswith((CLASSIFIER_PREFIX, SPENT_PREFIX)) for name in {*Metrics.model_fields, *RunSpec.model_fields})


def test_every_field_of_metrics_has_its_column(records):
    row = run_table(records[0])
    assert {*Metrics.model_fields, *RunSpec.model_fields} - set(row.columns) == {
        "run",
        "per_classifier",
        "spent_epsilon",
        "outside_the_guarantee",
    }


def test_the_summary_has_three_columns_of_each_metric(records):
    table = summary_table(run_table(records[0]))
    spread = [name for name in table.columns if name.endswith((MEAN, SD, INTERVAL))]
    assert spread == [metric + ending for metric in SPREAD_METRICS for ending in (MEAN, SD, INTERVAL)]
    assert set(SPREAD_METRICS) < set(Metrics.model_fields)
    assert table[SEEDS].sum() == len(records[0])


def test_selections_have_the_columns_of_run_and_matrix(records):
    table = selection_table(*records)
    assert table.columns.is_unique
    assert {"run_id", MATRIX, SCORE, SELECTED, *RunSpec.model_fields} < set(table.columns)
    assert table[SELECTED].dtype == bool
    by_method = table.groupby("method")[SCORE].count()
    assert by_method["dp-sapf"] > 0 == by_method["dp-lora"], "no score was released"


def test_candidates_have_the_columns_that_are_named():
    table, parameters = StableDiffusion.candidate_table(Path(dpsapf.__file__).parent / "public_models" / "public-mini")
    assert table.columns.tolist() == candidate_table().columns.tolist(), "the invented table is like the real one"
    assert set(table[CANDIDATES]) == {"attention", "attention+proj", "attention+ffn", "all-params"}
    assert table[PARAMETERS].sum() < parameters and table[MATRIX].is_unique
    linear = table[table[CANDIDATES] == "attention"]
    assert (linear[LORA_PARAMETERS] ** 2 >= 4 * linear[PARAMETERS]).all(), "rows + columns against rows x columns"
