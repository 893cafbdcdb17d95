import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpsapf.aggregation.aggregate import aggregate, interval_factor, summary_table
from dpsapf.aggregation.collect import collect_metrics
from dpsapf.experiment.columns import SPREAD_METRICS
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.records import Metrics
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record
from tests.fake_results import aggregate_options, candidate_table, write_run

FLOOR = RunSpec(dataset="digits", public_model="m", method="no-finetune")
LORA = RunSpec(dataset="digits", public_model="m", method="dp-lora", epsilon=10.0)
SAPF = replace(LORA, method="dp-sapf", level="matrix", ratio=0.3, sigma_s=5.0)
T_975 = {1: 12.7062047, 2: 4.3026527}  # Student's 97.5 % quantile by degrees of freedom, from a printed table


def seeds(run, count):
    return [replace(run, seed=seed) for seed in range(count)]


def tables(root, scores, **changes):
    """Write the runs of ``scores`` (run -> accuracy) and aggregate them."""
    layout = Layout(root)
    for run, accuracy in scores.items():
        collect_metrics(write_run(layout, run, candidate_table(1), accuracy=accuracy, **changes))
    options = aggregate_options(layout, list(scores))
    aggregate(options)
    return [pd.read_csv(path) for path in (options.runs, options.summary, options.selections)]


def test_mean_spread_and_interval_over_three_seeds(tmp_path):
    values = [0.5, 0.56, 0.53]
    _, summary, _ = tables(tmp_path, dict(zip(seeds(LORA, 3), values, strict=True)))
    assert len(summary) == 1
    row = summary.iloc[0]
    assert row["n"] == 3
    assert row["accuracy_mean"] == pytest.approx(0.53)
    assert row["accuracy_sd"] == pytest.approx(statistics.stdev(values))
    assert row["accuracy_interval95"] == pytest.approx(T_975[2] * 0.03 / 3**0.5, rel=1e-6)


def test_a_score_that_no_run_has_is_empty(tmp_path):
    """The probe gives no probabilities, and so has no calibration error."""
    runs, summary, _ = tables(tmp_path, dict.fromkeys(seeds(LORA, 2), 0.5), calibration_error=None)
    assert runs["calibration_error"].isna().all() and summary["calibration_error_mean"].isna().all()
    assert summary["calibration_error_interval95"].isna().all() and summary["macro_f1_mean"].notna().all()


def test_one_seed_has_no_spread_not_zero_spread(tmp_path):
    _, summary, _ = tables(tmp_path, {LORA: 0.5})
    row = summary.iloc[0]
    assert row["n"] == 1
    for metric in SPREAD_METRICS:
        assert np.isfinite(row[f"{metric}_mean"])
        assert np.isnan(row[f"{metric}_sd"])
        assert np.isnan(row[f"{metric}_interval95"])


def test_interval_factor_against_a_printed_table():
    factor = interval_factor(pd.Series([1, 2, 3]))
    assert np.isnan(factor[0])
    np.testing.assert_allclose(factor[1:], [T_975[1] / 2**0.5, T_975[2] / 3**0.5], rtol=1e-7)


def test_interval_covers_the_true_mean_in_95_percent_and_a_normal_quantile_would_not():
    groups, n = 4000, 3
    draws = np.random.default_rng(0).normal(0.5, 0.02, (groups, n))
    runs = pd.DataFrame({"ratio": np.repeat(np.arange(groups), n), "seed": np.tile(np.arange(n), groups)})
    axes = {"dataset": "d", "public_model": "m", "method": "dp-sapf", "level": "matrix", "sigma_s": 5.0, "epsilon": 1.0}
    axes |= {"score": "energy", "mechanism": "gaussian", "candidates": "attention", "adapter": "lora"}
    axes |= dict.fromkeys(("rule", *TRAINING_AXES))
    runs = runs.assign(protocol="p", **axes, **dict.fromkeys(SPREAD_METRICS, draws.ravel()))
    summary = summary_table(runs)
    error = (summary["accuracy_mean"] - 0.5).abs()
    # 4,000 groups: standard error of the coverage 0.0034, allowed 4 of them
    assert (error < summary["accuracy_interval95"]).mean() == pytest.approx(0.95, abs=0.014)
    assert (error < 1.96 * summary["accuracy_sd"] / n**0.5).mean() < 0.92


def test_settings_are_grouped_apart_and_null_axes_kept(tmp_path):
    scores = {
        LORA: 0.5,
        replace(LORA, epsilon=1.0): 0.4,
        SAPF: 0.6,
        replace(SAPF, ratio=0.5): 0.58,
        FLOOR: 0.3,
    }
    runs, summary, _ = tables(tmp_path, scores)
    assert summary["n"].tolist() == [1] * 5
    assert summary["accuracy_mean"].tolist() == list(scores.values())
    assert runs["run_id"].tolist() == [run.id for run in scores]
    assert runs.loc[4, ["level", "ratio", "sigma_s", "epsilon", "noise_multiplier"]].isna().all()
    assert runs.loc[4, "trainable_parameters"] == 0


def test_run_table_spreads_dictionaries_to_columns(tmp_path):
    runs, _, _ = tables(tmp_path, {LORA: 0.5}, per_classifier={"cnn": 0.45, "mlp": 0.55})
    assert runs.loc[0, ["accuracy_of_cnn", "accuracy_of_mlp"]].tolist() == [0.45, 0.55]
    assert runs.loc[0, "spent_epsilon_pld"] == pytest.approx(9.9)
    assert "outside_the_guarantee" not in runs


def test_selections_have_one_row_per_run_and_matrix(tmp_path):
    _, _, selections = tables(tmp_path, {SAPF: 0.6, LORA: 0.5, FLOOR: 0.3})
    candidates = candidate_table(1)
    assert selections.groupby("run_id").size().to_dict() == {SAPF.id: len(candidates), LORA.id: len(candidates)}
    sapf = selections[selections["run_id"] == SAPF.id]
    assert sapf["matrix"].tolist() == candidates["matrix"].tolist()
    chosen = sapf.nlargest(round(0.3 * len(candidates)), "noisy_score")["matrix"]
    assert set(sapf.loc[sapf["selected"], "matrix"]) == set(chosen)
    assert selections.loc[selections["run_id"] == LORA.id, "noisy_score"].isna().all()


def test_runs_without_any_selection_give_an_empty_table_with_its_columns(tmp_path):
    _, _, selections = tables(tmp_path, {FLOOR: 0.3})
    assert selections.empty
    assert {"run_id", "ratio", "matrix", "noisy_score", "selected"} <= set(selections.columns)


def test_mixed_protocols_are_refused(tmp_path):
    layout = Layout(tmp_path)
    for run, protocol in ((LORA, "test-v1"), (FLOOR, "other-v1")):
        collect_metrics(write_run(layout, run, candidate_table(1), protocol=protocol))
    options = aggregate_options(layout, [LORA, FLOOR])
    with pytest.raises(UserError, match="never mix protocols"):
        aggregate(options)
    assert not options.runs.exists()


def test_a_value_out_of_its_range_is_refused_and_nothing_written(tmp_path):
    layout = Layout(tmp_path)
    collect_metrics(write_run(layout, LORA, candidate_table(1), accuracy=71.2))
    options = aggregate_options(layout, [LORA])
    with pytest.raises(UserError, match=r"runs.csv: row 1, accuracy = 71.2: must be a number, between 0 and 1"):
        aggregate(options)
    assert not options.runs.exists()


def test_a_run_given_twice_is_refused(tmp_path):
    collect_metrics(write_run(Layout(tmp_path), LORA, candidate_table(1)))
    with pytest.raises(UserError, match="give every run once"):
        aggregate(aggregate_options(Layout(tmp_path), [LORA, LORA]))


def test_missing_selection_of_a_run_that_trains_is_refused(tmp_path):
    layout = Layout(tmp_path)
    collect_metrics(write_run(layout, LORA, candidate_table(1)))
    (layout.root / "runs" / LORA.id / "selection.csv").unlink()
    with pytest.raises(UserError, match="its selection must stand beside its metrics"):
        aggregate(aggregate_options(layout, [LORA]))


def test_metrics_of_a_protocol_are_spread_where_it_has_them_and_missing_ones_stay_missing(tmp_path):
    runs, summary, _ = tables(tmp_path, dict.fromkeys(seeds(LORA, 2), 0.5), fld=12.0, coverage=0.25)
    assert (summary["fld_mean"][0], summary["coverage_mean"][0], summary["fld_sd"][0]) == (12.0, 0.25, 0)
    assert not {"density_mean", "inception_score_mean", "fid_infinity_mean"} & set(summary.columns)
    assert runs["density"].isna().all() and (runs["fld"] == 12.0).all() and (runs["synthetic_images"] == 800).all()
    runs.loc[1, "fld"] = np.nan
    row = summary_table(runs).iloc[0]
    assert (
        row["n"] == 2 and row[["fld_mean", "fld_sd", "fld_interval95"]].isna().all() and row["fid_mean"] == summary["fid_mean"][0]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol_digest": "another"}, "protocol_digest = 'another': in .* test-v1 means 0123456789abcdef: evaluate all runs"),
        ({"reference": "another"}, "reference = 'another': .* was compared with other features of digits"),
    ],
)
def test_records_of_one_name_and_two_meanings_or_two_references_are_refused(tmp_path, changes, message):
    layout, runs = Layout(tmp_path), seeds(LORA, 2)
    for run in runs:
        collect_metrics(write_run(layout, run, candidate_table(1)))
    path = Path(layout.run(runs[1].id, "metrics.json"))
    write_record(path, replace(read_record(path, Metrics), **changes))
    options = aggregate_options(layout, runs)
    with pytest.raises(UserError, match=message):
        aggregate(options)
    assert not options.runs.exists()


def test_each_dataset_has_a_reference_of_its_own(tmp_path):
    layout, runs = Layout(tmp_path), [LORA, replace(LORA, dataset="mnist5k")]
    for run in runs:
        collect_metrics(write_run(layout, run, candidate_table(1), reference=run.dataset))
    aggregate(aggregate_options(layout, runs))
