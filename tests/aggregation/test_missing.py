"""Runs that the config has and that are not there: rows that say so, and "missing" in the tables, never 0."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from dpsapf.aggregation.aggregate import aggregate
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.runs import Study, expand
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from paper_figures import differences, main_table, resources
from paper_figures.draw import draw_all
from paper_figures.results import load_results
from paper_figures.tables import markdown
from tests.fake_results import ROOT, aggregate_options, write_results

STUDY = {"dataset": ["mnist5k", "digits"], "method": ["dp-sapf", "dp-lora", "random", "no-finetune"], "seed": [0, 1, 2]}
RUNS = expand({"main": Study(**STUDY)})
LOST = [run for run in RUNS if run.method == "random" and run.dataset == "digits"]  # a whole setting
LOST += [run for run in RUNS if run.method == "dp-lora" and run.dataset == "digits" and run.seed]  # two of three seeds
LOST += [run for run in RUNS if run.method == "no-finetune" and run.dataset == "mnist5k" and run.seed == 2]


@pytest.fixture(scope="module")
def configfile(tmp_path_factory):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text()) | {"studies": {"main": STUDY}}
    for key in ("compare_scores", "compare_rankings", "measure_fragility"):
        config.pop(key, None)
    for key in ("datasets_file", "public_models_file", "protocols_file"):
        config[key] = str(ROOT / config.get(key, f"config/{key.removesuffix('_file')}.yaml"))
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory, configfile):
    root = write_results(tmp_path_factory.mktemp("results") / "cut", [run for run in RUNS if run not in LOST], images=False)
    aggregate(options(root, configfile))
    return root


def options(root, configfile, runs=RUNS):
    there = [run for run in runs if (root / "runs" / run.id / "metrics.json").exists()]
    return replace(aggregate_options(Layout(root), there), configfile=configfile)


def test_a_missing_run_is_a_row_without_metrics(root):
    runs = pd.read_csv(root / "tables" / "runs.csv").set_index("run_id")
    assert sorted(runs.index[runs["status"] == "missing"]) == sorted(run.id for run in LOST)
    assert len(runs) == len(RUNS)
    empty = runs.loc[[run.id for run in LOST]].drop(columns=["status", "protocol", *type(LOST[0]).model_fields])
    assert empty.isna().all(axis=None)


def test_the_summary_counts_what_is_there_and_what_was_expected(root):
    summary = pd.read_csv(root / "tables" / "summary.csv").set_index(["dataset", "method"])
    assert summary["expected"].unique().tolist() == [3]
    assert summary.loc[("digits", "random"), "n"] == 0 and np.isnan(summary.loc[("digits", "random"), "fid_mean"])
    assert summary.loc[("digits", "dp-lora"), "n"] == 1 and np.isnan(summary.loc[("digits", "dp-lora"), "fid_sd"])
    assert summary.loc[("mnist5k", "no-finetune"), "n"] == 2
    runs = pd.read_csv(root / "tables" / "runs.csv")
    floor = runs[(runs["dataset"] == "mnist5k") & (runs["method"] == "no-finetune")]["fid"].dropna()
    assert summary.loc[("mnist5k", "no-finetune"), "fid_mean"] == pytest.approx(floor.mean())


def rows_by_label(table, name):
    place = table.header.index(name)
    return {row[place].text: dict(zip(table.header, (cell.text for cell in row), strict=True)) for row in table.rows}


def test_tables_say_missing_and_name_the_runs(root):
    results = load_results(root)
    table = main_table.draw(main_table.prepare(results))
    row = rows_by_label(table, "method")["random, matrices 30 %"]
    assert row["digits FID"] == row["digits accuracy (%)"] == "missing" and row["mnist5k FID"] not in ("missing", "—")
    assert "Missing: 6 of 24 runs (" in table.note and LOST[-1].id in table.note and "..." in table.note
    compared = differences.draw(differences.prepare(results))
    rows = rows_by_label(compared, "minus")
    assert rows["random, matrices 30 %"]["digits FID"] == "missing"
    assert rows["DP-LoRA"]["digits FID"] == "missing", "one seed of three makes no pair of two"
    assert "±" in rows["DP-LoRA"]["mnist5k FID"]
    costs = resources.draw(resources.prepare(results))
    lost = [row for row in costs.rows if [cell.text for cell in row[:3]] == ["digits", "public-mini", "random, matrices 30 %"]]
    assert [cell.text for row in lost for cell in row[3:]] == ["missing"] * 5


def test_nothing_is_averaged_with_what_is_missing(root, tmp_path):
    results = load_results(root)
    assert len(results.runs) == len(RUNS) - len(LOST) and (results.summary["n"] > 0).all()
    assert {"main_table", "differences", "resources", "privacy_cost"} <= set(draw_all(root, tmp_path))
    for path in tmp_path.glob("*.md"):
        assert "nan" not in path.read_text(encoding="utf-8").lower(), path.name


@pytest.mark.parametrize(("table", "column"), [("runs", "accuracy"), ("summary", "accuracy_mean")])
def test_tables_that_somebody_changed_are_refused_in_one_line(root, tmp_path, table, column):
    shutil.copytree(root / "tables", tmp_path / "tables")
    path = tmp_path / "tables" / f"{table}.csv"
    changed = pd.read_csv(path)
    changed.loc[0, column] = 71.2
    changed.to_csv(path, index=False)
    with pytest.raises(UserError, match=rf"{table}.csv: row 1, {column} = 71.2: must be a number, between 0 and 1") as told:
        load_results(tmp_path)
    assert "\n" not in str(told.value)


def test_if_all_of_ours_are_missing_every_pair_of_the_dataset_is(tmp_path, configfile):
    there = [run for run in RUNS if not (run.method == "dp-sapf" and run.dataset == "digits")]
    root = write_results(tmp_path / "ours", there, images=False)
    aggregate(options(root, configfile))
    table = differences.draw(differences.prepare(load_results(root)))
    assert {row["digits FID"] for row in rows_by_label(table, "minus").values()} == {"missing"}
    assert "missing" in markdown(table)


def test_complete_results_miss_nothing(tmp_path, configfile):
    root = write_results(tmp_path / "whole", RUNS, images=False)
    before = (root / "tables" / "runs.csv").read_bytes()
    aggregate(options(root, configfile))
    assert (root / "tables" / "runs.csv").read_bytes() == before
    assert "Missing" not in main_table.draw(main_table.prepare(load_results(root))).note


def test_a_run_of_another_config_and_no_run_at_all_are_refused_and_nothing_is_written(root, tmp_path, configfile):
    other = expand({"other": Study(dataset=("digits",), method=("dp-full",))})
    own = write_results(tmp_path / "own", other, images=False)
    before = (own / "tables" / "runs.csv").read_bytes()
    with pytest.raises(UserError, match=r"digits--public-mini--dp-full--eps10--seed0.*is no run of"):
        aggregate(options(own, configfile, other))
    with pytest.raises(UserError, match="no run has metrics"):
        aggregate(replace(options(own, configfile, other), metrics=()))
    assert (own / "tables" / "runs.csv").read_bytes() == before
