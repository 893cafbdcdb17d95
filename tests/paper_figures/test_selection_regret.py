import dataclasses

import numpy as np
import pandas as pd
import pytest

from paper_figures import selection_regret
from paper_figures.results import MissingStudy
from paper_figures.tables import markdown


@pytest.fixture(scope="module")
def data(swept):
    return selection_regret.prepare(swept)


def log_fids(swept):
    runs = swept.runs[(swept.runs["dataset"] == "mnist5k") & swept.runs["epsilon"].notna()]
    names = runs["method"] + runs["rule"].fillna("") + runs["ratio"].fillna(1).map(str)
    return np.log(runs["fid"]).groupby([names, runs["used_learning_rate"]]).mean().unstack()


def test_regret_is_against_the_best_at_the_same_rate(swept, data):
    logs = log_fids(swept)
    expected = logs - logs.min()
    rows = data[data["dataset"] == "mnist5k"].set_index("label")
    assert len(rows) == len(logs) == 7
    names = {"all (DP-LoRA)": "dp-lora1.0", "random, 50 %": "random0.5", "least salient, energy, 10 %": "dp-sapfleast0.1"}
    for label, name in names.items():
        assert rows.loc[label, "fid_over_best"] == pytest.approx(np.exp(expected.loc[name].mean()))
        assert rows.loc[label, "worst"] == pytest.approx(np.exp(expected.loc[name].max()))
    assert (rows["fid_over_best"] >= 1).all() and rows["fid_over_best"].is_monotonic_increasing and (rows["seeds"] == 3).all()


def test_a_way_that_lacks_a_rate_is_left_out(swept, data):
    lacking = (swept.runs["method"] == "random") & (swept.runs["ratio"] == 0.5) & (swept.runs["learning_rate"] == 0.2)
    found = selection_regret.prepare(dataclasses.replace(swept, runs=swept.runs[~lacking]))
    assert set(data["label"]) - set(found["label"]) == {"random, 50 %"}


def test_rules_and_scores_have_rows_of_their_own(swept):
    other = swept.runs[swept.runs["rule"] == "top"].drop_duplicates(["dataset", "learning_rate", "seed"])
    found = other.assign(rule="noise-budget", score="signal", ratio=np.nan, selected_matrices=7)
    mixed = dataclasses.replace(swept, runs=pd.concat([swept.runs, found], ignore_index=True))
    text = markdown(selection_regret.draw(selection_regret.prepare(mixed)))
    assert "| as many as noise allows, signal, auto | 7 | 3 |" in text and "over the learning rates 0.02, 0.07, 0.2," in text


def test_two_rates_are_no_regret(swept):
    two = swept.runs[swept.runs["used_learning_rate"] != 0.2]
    with pytest.raises(MissingStudy, match="3 learning rates"):
        selection_regret.prepare(dataclasses.replace(swept, runs=two))


def test_as_many_other_rates_are_not_compared(swept):
    """Random 50 % has three rates, as all have, but 0.3 instead of 0.2."""
    moved = (swept.runs["method"] == "random") & (swept.runs["ratio"] == 0.5) & (swept.runs["learning_rate"] == 0.2)
    runs = swept.runs.assign(used_learning_rate=swept.runs["used_learning_rate"].where(~moved, 0.3))
    data = selection_regret.prepare(dataclasses.replace(swept, runs=runs))
    assert "random, 50 %" not in set(data["label"]) and data["rates"].unique().tolist() == ["0.02, 0.07, 0.2"]
