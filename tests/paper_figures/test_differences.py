import dataclasses

import numpy as np
import pytest
from scipy import stats

from dpsapf.aggregation.multiple_tests import holm
from paper_figures import differences
from paper_figures.results import MissingStudy, load_results
from tests.fake_results import variant_runs, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = write_results(tmp_path_factory.mktemp("pairs"), variant_runs(("mnist5k", "histo-mini"), seeds=(0, 1, 2)), images=False)
    return load_results(root)


def by_seed(results, method, column):
    runs = results.runs[(results.runs["dataset"] == "histo-mini") & (results.runs["method"] == method)]
    return runs.set_index("seed")[column].sort_index()


def row_of(data, series, dataset="histo-mini"):
    return data[(data["series"] == series) & (data["dataset"] == dataset)].iloc[0]


@pytest.mark.parametrize("method", ["random", "no-dp", "no-finetune"])
def test_differences_are_those_of_a_welch_interval(results, method):
    data = differences.prepare(results)
    row = row_of(data, "no-finetune" if method == "no-finetune" else f"{method}-matrix")
    test = stats.ttest_ind(by_seed(results, "dp-sapf", "fid"), by_seed(results, method, "fid"), equal_var=False)
    interval = test.confidence_interval(0.95)
    assert row["n"] == 3
    assert row["fid"] - row["fid_interval95"] == pytest.approx(interval.low)
    assert row["fid"] + row["fid_interval95"] == pytest.approx(interval.high)
    accuracy = by_seed(results, "dp-sapf", "accuracy").mean() - by_seed(results, method, "accuracy").mean()
    assert row["accuracy_pct"] == pytest.approx(100 * accuracy)


def test_a_seed_that_one_of_the_two_lacks_counts_on_the_other(results):
    runs = results.runs
    missing = (runs["method"] == "random") & (runs["seed"] == 1) & (runs["dataset"] == "histo-mini")
    row = row_of(differences.prepare(dataclasses.replace(results, runs=runs[~missing])), "random-matrix")
    mean = by_seed(results, "dp-sapf", "fid").mean() - by_seed(results, "random", "fid")[[0, 2]].mean()
    assert row["n"] == 2 and row["fid"] == pytest.approx(mean)


def test_one_seed_has_no_interval_and_no_table(results):
    runs = results.runs[results.runs["seed"] == 0]
    with pytest.raises(MissingStudy, match="two seeds"):
        differences.prepare(dataclasses.replace(results, runs=runs))


def test_p_values_are_scipys_and_corrected_over_the_table(results):
    data = differences.prepare(results)
    test = stats.ttest_ind(by_seed(results, "dp-sapf", "fid"), by_seed(results, "random", "fid"), equal_var=False)
    assert row_of(data, "random-matrix")["fid_p"] == pytest.approx(test.pvalue)
    corrected = holm(data[["accuracy_pct_p", "fid_p"]].to_numpy().ravel())
    np.testing.assert_array_equal(data[["accuracy_pct_p_holm", "fid_p_holm"]].to_numpy().ravel(), corrected)
    assert (data["fid_p_holm"] >= data["fid_p"]).all() and (data["fid_p_holm"] > data["fid_p"]).any()


def test_bold_is_what_the_corrected_p_decides(results):
    data = differences.prepare(results)
    data.loc[:, ["fid_p", "fid_p_holm"]] = [0.001, 0.049]
    data.loc[:, ["accuracy_pct_p", "accuracy_pct_p_holm"]] = [0.0004, 0.051]
    table = differences.draw(data)
    cells = [list(zip(table.header, row, strict=True))[2:] for row in table.rows]
    assert all(cell.bold == ("FID" in name) for row in cells for name, cell in row)
    assert all(
        cell.text.endswith("(0.001, 0.049)" if "FID" in name else "(<0.001, 0.051)") for row in cells for name, cell in row
    )
    assert {row[1].text for row in table.rows} == set(np.unique(data["label"]))
    assert f"Holm's correction for the table's {2 * len(data)} tests" in table.note


def test_a_pair_that_was_not_run_is_a_dash_and_not_bold():
    cell = differences.cell(None, "fid", 1)
    assert (cell.text, cell.bold) == ("—", False)
