import dataclasses

import numpy as np
import pandas as pd
import pytest

from dpsapf.experiment.methods import TOLERATED_RISE
from paper_figures import noise_rise
from paper_figures.results import MissingStudy
from paper_figures.style import theme


@pytest.fixture(scope="module")
def predicted(swept):
    runs = swept.runs.assign(predicted_rise=30 * swept.runs["used_learning_rate"] ** 2)
    frozen = runs[(runs["method"] == "dp-lora") & (runs["learning_rate"] == 0.2)].assign(adapter="ffa-lora", predicted_rise=0.2)
    weighed = runs[runs["rule"] == "top"].assign(rule="noise-budget", score="signal", ratio=np.nan)
    return dataclasses.replace(swept, runs=pd.concat([runs, frozen, weighed], ignore_index=True))


@pytest.fixture(scope="module")
def data(predicted):
    return noise_rise.prepare(predicted)


def test_a_setting_is_a_mean_over_seeds_beside_the_floor(predicted, data):
    runs = predicted.runs.query("dataset == 'mnist5k' and method == 'random' and ratio == 0.5 and learning_rate == 0.07")
    floor = predicted.runs.query("dataset == 'mnist5k' and method == 'no-finetune'")["fid"].mean()
    (row,) = data.query("dataset == 'mnist5k' and way == 'random-matrix' and ratio == 0.5 and rate == 0.07").to_dict("records")
    assert row["n"] == 3 and row["fid"] == pytest.approx(runs["fid"].mean())
    assert row["fid_over_floor"] == pytest.approx(runs["fid"].mean() / floor)
    assert row["predicted_rise"] == pytest.approx(30 * 0.07**2)


def test_ways_are_told_apart(data):
    assert set(data["way"]) == {"dp-lora", "dp-sapf-matrix", "dp-sapf-matrix-least", "random-matrix", "ffa-lora", "weighed"}
    assert data.loc[data["way"] == "ffa-lora", "predicted_rise"].tolist() == pytest.approx([0.2, 0.2])


def test_the_rank_correlation_is_the_panels(data):
    for _, rows in data.groupby("dataset"):
        ranks = np.corrcoef(rows["fid"].rank(), rows["predicted_rise"].rank())[0, 1]
        assert rows["rank_correlation"].to_numpy() == pytest.approx(ranks)


def test_the_figure_has_a_panel_each_and_the_tolerated_rise(data):
    with theme():
        figure = noise_rise.draw(data)
        figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == 2 and all(TOLERATED_RISE in [line.get_xdata()[0] for line in ax.lines] for ax in panels)
    assert sum(len(marks.get_offsets()) for marks in panels[0].collections) == (data["dataset"] == "mnist5k").sum()
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_any_number_of_panels_is_drawn(data, panels):
    several = [rows.assign(epsilon=float(number)) for number in range(2) for _, rows in data.groupby("dataset")]
    figure = noise_rise.draw(pd.concat(several[:panels]))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == panels and [ax.get_xlabel() != "" for ax in shown][-min(panels, 2) :] == [True] * min(panels, 2)


def test_without_predictions_or_settings_nothing_is_drawn(swept, predicted):
    with pytest.raises(MissingStudy, match="measure_fragility"):
        noise_rise.prepare(swept)
    few = predicted.runs[(predicted.runs["learning_rate"] == 0.2) & (predicted.runs["method"] == "dp-lora")]
    floor = predicted.runs[predicted.runs["method"] == "no-finetune"]
    with pytest.raises(MissingStudy, match="3 settings"):
        noise_rise.prepare(dataclasses.replace(predicted, runs=pd.concat([few, floor])))
