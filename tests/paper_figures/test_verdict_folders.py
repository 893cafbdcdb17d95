"""Which folders, and which of their runs, a verdict stands on: whatever is given is judged, or named with the reason."""

import dataclasses
import math

import numpy as np
import pytest

from dpsapf.experiment.runs import Study, expand
from paper_figures.results import load_results
from paper_figures.verdicts import judge_all
from tests.fake_results import write_results


def scored(run):
    """Invented scores with a little noise: twice the FID with DP-LoRA."""
    wobble = 0.01 * np.random.default_rng(sum(map(ord, run.id))).normal()
    return {"accuracy": 0.5 + wobble, "fid": (60.0 if run.method == "dp-lora" else 30.0) * math.exp(wobble)}


def folder(tmp_path_factory, name, studies, changes=scored):
    return write_results(tmp_path_factory.mktemp("verdicts") / name, expand(studies), images=False, changes=changes)


def row_of(data, claim, metric):
    return data[(data["kind"] == "claim") & (data["claim"] == claim) & (data["metric"] == metric)].iloc[0]


def test_a_score_that_another_dataset_has_more_of_takes_no_comparison_away(tmp_path_factory):
    """What a claim holds is chosen for each dataset and epsilon, not once for a folder."""
    axes = {"method": ("dp-sapf", "dp-lora"), "seed": (0, 1, 2)}
    studies = {
        "one": Study(dataset=("mnist5k",), score=("share",), epsilon=(1, 10), **axes),
        "other": Study(dataset=("histo-mini",), score=("norm",), sigma_s=(10,), **axes),
    }
    data = judge_all([load_results(folder(tmp_path_factory, "mixed", studies))])
    assert row_of(data, "dp-lora", "FID")["comparisons"] == 3


def test_folders_with_the_same_setting_are_one_comparison(tmp_path_factory):
    axes = {"dataset": ("mnist5k",), "method": ("dp-sapf", "dp-lora")}
    few, many = (
        folder(tmp_path_factory, name, {"a": Study(seed=seeds, **axes)})
        for name, seeds in (("few", (7, 8, 9)), ("many", range(5)))
    )
    for order in ((few, many), (many, few)):
        row = row_of(judge_all([load_results(path) for path in order]), "dp-lora", "FID")
        assert row["comparisons"] == 1 and row["seeds"] == 5 and "(many)" in row["where"]


def test_the_papers_score_goes_before_more_seeds(tmp_path_factory):
    axes = {"dataset": ("mnist5k",), "method": ("dp-sapf", "dp-lora")}
    paper = folder(tmp_path_factory, "paper", {"a": Study(seed=(0, 1, 2), **axes)})
    share = folder(tmp_path_factory, "share", {"a": Study(seed=range(5), score=("share",), sigma_s=(10,), **axes)})
    rows = judge_all([load_results(share), load_results(paper)])
    assert row_of(rows, "dp-lora", "FID")["where"] == "mnist5k, public-mini, ε = 10 (paper)"
    alone = row_of(judge_all([load_results(share)]), "dp-lora", "FID")
    assert "score share, sigma_s 10 (share)" in alone["where"], "what is not the paper's is named"
    reason = rows.loc[rows["kind"] == "results folder", ["claim", "why"]].values.tolist()
    assert reason == [["share", "What it compares has more seeds, or is nearer to the paper's setting, in paper."]]


RATES = (None, 0.04, 0.12)  # the config's own is 0.02


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Ten seeds at the config's learning rate, at twice that, and at six times that, where all is as bad."""
    study = Study(dataset=("mnist5k",), method=("dp-sapf", "dp-lora", "random"), learning_rate=RATES, seed=range(10))

    def changes(run):
        times = {None: 1.0, 0.04: 3.0, 0.12: 100.0}[run.learning_rate]
        return {"accuracy": 0.5, "fid": scored(run)["fid"] * (times if run.method == "dp-lora" else 1.0)}

    return load_results(folder(tmp_path_factory, "arms", {"a": study}, changes))


def test_learning_rates_within_a_step_of_the_configs_are_averaged_in_each_seed(arms):
    row = row_of(judge_all([arms]), "dp-lora", "FID")
    assert (row["comparisons"], row["seeds"]) == (1, 10)
    logs = np.log(arms.runs["fid"]).groupby([arms.runs["method"], arms.runs["learning_rate"].fillna(0.02)]).mean().unstack()
    assert row["ours"] == pytest.approx(math.exp((logs.loc["dp-sapf", [0.02, 0.04]] - logs.loc["dp-lora", [0.02, 0.04]]).mean()))


def test_a_seed_that_lacks_a_learning_rate_is_left_out(arms):
    lost = (arms.runs["seed"] < 4) & (arms.runs["learning_rate"] == 0.04) & (arms.runs["method"] == "dp-lora")
    assert row_of(judge_all([dataclasses.replace(arms, runs=arms.runs[~lost])]), "dp-lora", "FID")["seeds"] == 6


def test_a_rate_that_one_side_lacks_is_left_out(arms):
    lost = (arms.runs["learning_rate"] == 0.04) & (arms.runs["method"] == "dp-lora")
    row = row_of(judge_all([dataclasses.replace(arms, runs=arms.runs[~lost])]), "dp-lora", "FID")
    logs = np.log(arms.runs[arms.runs["learning_rate"].isna()].groupby("method")["fid"].prod()) / 10
    assert row["seeds"] == 10 and math.log(row["ours"]) == pytest.approx(logs["dp-sapf"] - logs["dp-lora"])


def test_where_nothing_is_at_the_configs_rate_the_least_takes_its_place(arms):
    named = arms.runs[arms.runs["learning_rate"].notna()]
    row = row_of(judge_all([dataclasses.replace(arms, runs=named)]), "dp-lora", "FID")
    logs = np.log(named[named["learning_rate"] == 0.04].groupby("method")["fid"].prod()) / 10
    assert math.log(row["ours"]) == pytest.approx(logs["dp-sapf"] - logs["dp-lora"])


@pytest.mark.parametrize(
    "axes",
    [{}, {"dataset": ("digits",)}, {"score": ("share",)}, {"sigma_s": (10,)}, {"learning_rate": (0.04,)}, {"epsilon": (1,)}],
)
def test_every_folder_is_judged_or_named(tmp_path_factory, axes):
    """Whatever one setting a folder has, and however it stands to another folder's."""
    study = Study(**({"dataset": ("mnist5k",), "method": ("dp-sapf", "dp-lora"), "seed": (0, 1, 2)} | axes))
    other = folder(tmp_path_factory, "other", {"a": study})
    assert row_of(judge_all([load_results(other)]), "dp-lora", "FID")["comparisons"] == 1
    first = Study(dataset=("mnist5k", "histo-mini"), method=("dp-sapf", "dp-lora"), seed=(0, 1, 2))
    data = judge_all([load_results(folder(tmp_path_factory, "first", {"a": first})), load_results(other)])
    named = set(data.loc[data["kind"] == "results folder", "claim"])
    judged = set(data["where"].str.extract(r"\((\w+)\)$")[0].dropna())
    assert {"first", "other"} == named | judged
