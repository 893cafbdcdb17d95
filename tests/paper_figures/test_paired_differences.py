import dataclasses

import numpy as np
import pytest
from scipy import stats

from dpsapf.aggregation.multiple_tests import holm
from paper_figures import paired_differences
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
def test_differences_are_those_of_a_paired_t_interval(results, method):
    data = paired_differences.prepare(results)
    row = row_of(data, "no-finetune" if method == "no-finetune" else f"{method}-matrix")
    differences = by_seed(results, "dp-sapf", "fid") - by_seed(results, method, "fid")
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert row["n"] == 3
    assert row["fid"] - row["fid_interval95"] == pytest.approx(interval.low)
    assert row["fid"] + row["fid_interval95"] == pytest.approx(interval.high)
    accuracy = by_seed(results, "dp-sapf", "accuracy") - by_seed(results, method, "accuracy")
    assert row["accuracy_pct"] == pytest.approx(100 * accuracy.mean())


def test_a_seed_that_one_of_the_two_lacks_is_left_out(results):
    runs = results.runs
    missing = (runs["method"] == "random") & (runs["seed"] == 1) & (runs["dataset"] == "histo-mini")
    data = paired_differences.prepare(dataclasses.replace(results, runs=runs[~missing]))
    differences = (by_seed(results, "dp-sapf", "fid") - by_seed(results, "random", "fid"))[[0, 2]]
    row = row_of(data, "random-matrix")
    assert row["n"] == 2 and row["fid"] == pytest.approx(differences.mean())


def test_one_seed_has_no_interval_and_no_table(results):
    runs = results.runs[results.runs["seed"] == 0]
    with pytest.raises(MissingStudy, match="two seeds"):
        paired_differences.prepare(dataclasses.replace(results, runs=runs))


def test_p_values_are_scipys_and_corrected_over_the_table(results):
    data = paired_differences.prepare(results)
    test = stats.ttest_rel(by_seed(results, "dp-sapf", "fid"), by_seed(results, "random", "fid"))
    assert row_of(data, "random-matrix")["fid_p"] == pytest.approx(test.pvalue)
    corrected = holm(data[["accuracy_pct_p", "fid_p"]].to_numpy().ravel()).p
    np.testing.assert_array_equal(data[["accuracy_pct_p_holm", "fid_p_holm"]].to_numpy().ravel(), corrected)
    assert (data["fid_p_holm"] >= data["fid_p"]).all() and (data["fid_p_holm"] > data["fid_p"]).any()


def test_bold_is_what_the_corrected_p_decides(results):
    data = paired_differences.prepare(results)
    data.loc[:, ["fid_p", "fid_p_holm"]] = [0.001, 0.049]
    data.loc[:, ["accuracy_pct_p", "accuracy_pct_p_holm"]] = [0.0004, 0.051]
    table = paired_differences.draw(data)
    cells = [list(zip(table.header, row, strict=True))[2:] for row in table.rows]
    assert all(cell.bold == ("FID" in name) for row in cells for name, cell in row)
    assert all(
        cell.text.endswith("(0.001, 0.049)" if "FID" in name else "(<0.001, 0.051)") for row in cells for name, cell in row
    )
    assert {row[1].text for row in table.rows} == set(np.unique(data["label"]))
    assert f"Holm's correction for the table's {2 * len(data)} tests" in table.note


def test_a_pair_that_was_not_run_is_a_dash_and_not_bold():
    cell = paired_differences.cell(None, "fid", 1)
    assert (cell.text, cell.bold) == ("—", False)
