"""Runs that select without private scores: each kind has a name of its own, and the ceiling stands in no ranking."""

import pytest

from dpsapf.experiment.runs import Study, expand
from paper_figures.draw import draw_all
from paper_figures.main_table import draw, prepare
from paper_figures.results import load_results, with_labels
from tests.fake_results import write_results


@pytest.fixture
def results(tmp_path):
    proxies = Study(dataset=("mnist5k",), method=("proxy",), proxy=("fragility", "digits", "mnist5k"))
    runs = expand({"s": Study(dataset=("mnist5k",), method=("dp-sapf", "no-finetune")), "p": proxies})
    write_results(tmp_path, runs, changes=lambda run: {"fid": 0.5} if run.proxy == "mnist5k" else {})  # the ceiling is best
    return load_results(tmp_path)


def test_the_table_names_what_selects_and_ranks_no_run_without_a_guarantee(results):
    rows = prepare(results)
    labels = set(rows["label"])
    assert {"public fragility, matrices 30 %", "other images' scores, matrices (digits) 30 %"} <= labels
    ceiling = rows[rows["series"] == "ceiling-matrix"]
    assert ceiling["label"].tolist() == ["own noiseless scores (no guarantee), matrices 30 %"]
    assert not ceiling[["best_fid", "best_accuracy_pct"]].to_numpy().any()
    assert rows.loc[rows["epsilon"] == 10, "best_fid"].sum() == 1
    targets = {row[1].text: row[2].text for row in draw(rows).rows}
    assert targets["own noiseless scores (no guarantee), matrices 30 %"] == "∞, noise of 10"
    assert targets["public fragility, matrices 30 %"] == "10"


def test_every_figure_is_drawn_where_sigma_is_found_by_plans_beside_numbers(tmp_path):
    axes = {"dataset": ("mnist5k",), "epsilon": (1, 10)}
    studies = {
        "auto": Study(method=("dp-sapf",), sigma_s=("auto", 5.0, 10.0), **axes),
        "share": Study(method=("dp-sapf",), score=("share",), sigma_s=("auto",), **axes),
        "beside": Study(method=("dp-lora", "proxy", "no-finetune"), proxy=("fragility", "digits", "mnist5k"), **axes),
    }
    write_results(tmp_path, expand(studies))
    results = load_results(tmp_path)
    assert set(results.runs["sigma_s"].dropna()) == {"auto", 5.0, 10.0}
    labels = set(with_labels(results.summary, results)["label"])
    assert "DP-SAPF, matrices 30 %, σ_s = 5" in labels and results.headline["sigma_s"] == "auto"
    drawn = draw_all(tmp_path, tmp_path / "figures")
    assert {"main_table", "epsilon_curves", "sigma_sensitivity", "privacy_cost", "all_metrics"} <= set(drawn)
    assert "| auto |" in (tmp_path / "figures" / "privacy_cost.md").read_text()
