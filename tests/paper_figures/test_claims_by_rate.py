import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from paper_figures import claims_by_rate, margins
from paper_figures.claims import CLAIMS, FID
from paper_figures.results import MissingStudy
from paper_figures.style import theme

BY_ID = {claim.id: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def at_30(swept):
    """`swept` with a ratio of 30 % in place of its 10 %, as claims ask for."""
    return dataclasses.replace(swept, runs=swept.runs.assign(ratio=swept.runs["ratio"].replace(0.1, 0.3)))


@pytest.fixture(scope="module")
def data(at_30):
    return claims_by_rate.prepare(at_30)


def test_each_rate_has_welchs_interval(data, at_30):
    row = data.query("claim == 'dp-lora' and metric == 'FID' and rate == 0.07 and label.str.startswith('mnist5k')").iloc[0]
    runs = at_30.runs[(at_30.runs["dataset"] == "mnist5k") & (at_30.runs["used_learning_rate"] == 0.07)]
    ours, theirs = (
        np.log(runs.loc[some, "fid"]) for some in ((runs["rule"] == "top") & (runs["ratio"] == 0.3), runs["method"] == "dp-lora")
    )
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    assert (math.log(row["low"]), math.log(row["high"])) == pytest.approx((interval.low, interval.high))
    assert row["seeds"] == 3 and math.log(row["margin"]) == pytest.approx(margins.margin(BY_ID["dp-lora"], FID))


def test_every_rate_of_each_setting_is_there(data, at_30):
    expected = set(at_30.runs["used_learning_rate"].dropna().unique())
    assert {"dp-lora", "random", "stable"} <= set(data["claim"])
    assert all(set(rows["rate"]) == expected for _, rows in data.groupby(["panel", "label"]))


def test_rates_that_noise_allows_have_no_place(data, at_30):
    auto = at_30.runs[at_30.runs["learning_rate"] == 0.07].assign(learning_rate="auto")
    more = dataclasses.replace(at_30, runs=pd.concat([at_30.runs, auto], ignore_index=True))
    assert claims_by_rate.prepare(more)["rate"].tolist() == data["rate"].tolist()


def test_margins_are_drawn_as_a_band_and_intervals_as_bars(data):
    with theme():
        figure = claims_by_rate.draw(data)
    panels = list(data.groupby("panel", sort=False))
    assert len(figure.axes) == len(panels)
    for ax, (_, rows) in zip(figure.axes, panels, strict=True):
        (band,) = ax.patches
        assert band.get_y() + band.get_height() == pytest.approx(rows["margin"].iloc[0])
        bars = [segment for container in ax.containers for segment in container.lines[2][0].get_segments()]
        assert sorted(bar[1, 1] for bar in bars) == pytest.approx(sorted(rows["high"]))


def test_one_rate_is_no_figure(at_30):
    with pytest.raises(MissingStudy, match="two learning rates"):
        claims_by_rate.prepare(dataclasses.replace(at_30, runs=at_30.runs[at_30.runs["learning_rate"].isna()]))
