import dataclasses
import math

import pandas as pd
import pytest
from scipy import stats

from paper_figures import selection_map, tuned_and_shared, tuned_differences
from paper_figures.differences import smallest_visible
from paper_figures.results import MissingStudy
from paper_figures.tables import markdown

SALIENT = "dp-sapf-matrix"


@pytest.fixture(scope="module")
def noisy(swept):
    """Beside `swept`, runs of two ways at a rate that noise allows, another one in each seed; and a ratio that noise found."""
    ways = swept.runs["method"].isin(["dp-lora", "random"]) & (swept.runs["learning_rate"] == 0.07)
    auto = swept.runs[ways].assign(learning_rate="auto")
    auto = auto.assign(used_learning_rate=0.05 * 2.0 ** (auto["seed"] - 1), fid=auto["fid"] * 0.9)
    budget = swept.runs[swept.runs["rule"] == "top"].assign(rule="noise-budget", score="signal", ratio=float("nan"))
    budget = budget.drop_duplicates(["dataset", "epsilon", "learning_rate", "seed"])
    return dataclasses.replace(swept, runs=pd.concat([swept.runs, auto, budget], ignore_index=True))


def test_the_rate_that_noise_allows_comes_before_a_proxys(noisy):
    data = tuned_and_shared.prepare(noisy).set_index(["dataset", "way", "setting"])
    row = data.loc["mnist5k", "dp-lora", "own"]
    assert row["chosen_by"] == "noise" and row["rate"] == pytest.approx(0.05) and row["n"] == 3, "one row of three seeds"
    assert data.loc["mnist5k", SALIENT, "own"]["chosen_by"] == "proxy"
    found = data.loc["mnist5k", f"{SALIENT}-noise-budget", "own"]
    assert found["label"] == "as many as noise allows" and found["chosen_by"] == "proxy"
    assert data.loc["mnist5k", "dp-lora", "shared"]["rate"] == 0.02


def test_differences_are_at_each_ways_own_rate(noisy):
    data = tuned_differences.prepare(noisy)
    row = data.query("dataset == 'mnist5k' and setting == 'own' and series == 'dp-lora'").iloc[0]
    assert row["chosen_by"] == "noise" and row["rate"] == pytest.approx(0.05)
    own = tuned_and_shared.prepare(noisy).query(f"dataset == 'mnist5k' and way == '{SALIENT}' and setting == 'own'").iloc[0]
    runs = noisy.runs[(noisy.runs["dataset"] == "mnist5k") & (noisy.runs["epsilon"] == 10)]
    chosen = (runs["rule"] == "top") & (runs["ratio"] == noisy.headline["ratio"]) & (runs["used_learning_rate"] == own["rate"])
    ours = runs[chosen].set_index("seed")["fid"]
    lora = runs[(runs["method"] == "dp-lora") & (runs["learning_rate"] == "auto")].set_index("seed")["fid"]
    test = stats.ttest_ind(ours, lora, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert row["fid"] == pytest.approx((interval.low + interval.high) / 2)
    assert 2 * row["fid_interval95"] == pytest.approx(interval.high - interval.low)
    assert row["fid_visible"] == pytest.approx(smallest_visible(test.df) * math.hypot(ours.sem(), lora.sem()))
    text = markdown(tuned_differences.draw(data))
    assert "each its own" in text and "shared" in text and "Smallest difference that would be seen in 80 of 100" in text


def test_one_seed_has_no_differences(noisy):
    with pytest.raises(MissingStudy, match="two seeds"):
        tuned_differences.prepare(dataclasses.replace(noisy, runs=noisy.runs[noisy.runs["seed"] == 0]))


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_smallest_visible_difference_is_seen_in_eighty_of_a_hundred_studies(seeds):
    """Of two sides that spread alike, where Welch's degrees of freedom are those of both together."""
    shift = smallest_visible(2 * (seeds - 1)) * math.sqrt(2 / seeds)
    ours, theirs = stats.norm.rvs(size=(2, 20_000, seeds), random_state=seeds)
    seen = stats.ttest_ind(ours + shift, theirs, axis=1)
    assert ((seen.pvalue < 0.05) & (seen.statistic > 0)).mean() == pytest.approx(0.8, abs=0.012)  # four standard errors
    assert smallest_visible(math.inf) == pytest.approx(smallest_visible(1e6), rel=1e-4)  # Student's t is nearly normal there


def test_a_way_without_the_shared_rate_is_compared_at_its_own(noisy):
    """Where the ratio was found, runs at the config's learning rate are no need."""
    lacking = (noisy.runs["rule"] == "noise-budget") & noisy.runs["learning_rate"].isna()
    results = dataclasses.replace(noisy, runs=noisy.runs[~lacking])
    way = f"{SALIENT}-noise-budget"
    data = tuned_and_shared.prepare(results)
    assert data.loc[data["way"] == way, "setting"].tolist() == ["own", "own"], "one for each dataset"
    differences = tuned_differences.prepare(results)
    assert differences.loc[differences["series"] == way, "setting"].unique().tolist() == ["own"]
    labels = [text.get_text() for text in tuned_and_shared.draw(data).axes[0].get_yticklabels()]
    assert any("(own)" in label and "shared" not in label for label in labels)


def test_ways_stay_where_most_runs_have_the_score_of_the_found_ratio(noisy):
    """As many as noise allows has score signal, whatever the most salient have, and however many runs it has."""
    found = noisy.runs[noisy.runs["rule"] == "noise-budget"]
    many = [found.assign(seed=found["seed"] + 3 * times) for times in range(1, 20)]
    results = dataclasses.replace(noisy, runs=pd.concat([noisy.runs, *many], ignore_index=True))
    data = tuned_and_shared.prepare(results)
    assert results.runs["score"].mode()[0] == "signal" and {SALIENT, "random-matrix"} <= set(data["way"].dropna())


def test_a_found_ratio_alone_has_no_selection_map(results):
    alone = results.selections.assign(ratio=float("nan"))
    with pytest.raises(MissingStudy, match="a given share"):
        selection_map.prepare(dataclasses.replace(results, selections=alone))
