import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.colors import to_rgb

from dpsapf.experiment.runs import expand
from dpsapf.experiment.settings import parse_config
from paper_figures import draw, ratio_curves, stability_edges, stability_map
from paper_figures.collapse import edge, excess
from paper_figures.learning_rates import CHOSEN
from paper_figures.results import MissingStudy
from paper_figures.style import theme
from paper_figures.tables import markdown
from tests.fake_results import collapsing, stability_runs, true_edge

SALIENT, RANDOM, LEAST = CHOSEN


@pytest.fixture(scope="module")
def cells(swept):
    return stability_map.prepare(swept)


@pytest.fixture(scope="module")
def edges(swept):
    return stability_edges.prepare(swept)


def row_of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_a_cell_has_the_mean_over_seeds_at_the_rate_that_was_used(swept, cells):
    runs = swept.runs.query("dataset == 'mnist5k' and method == 'dp-sapf' and rule == 'least' and ratio == 0.5")
    floor = swept.runs.query("dataset == 'mnist5k' and method == 'no-finetune'")
    for rate, axis in ((0.02, runs["learning_rate"].isna()), (0.2, runs["learning_rate"] == 0.2)):
        row = row_of(cells, dataset="mnist5k", panel="least salient", ratio=0.5, rate=rate)
        assert row["n"] == axis.sum() == 3
        assert (row["fid"], row["fid_sd"]) == pytest.approx((runs["fid"][axis].mean(), runs["fid"][axis].std()))
        assert row["fid_over_floor"] == pytest.approx(runs["fid"][axis].mean() / floor["fid"].mean())
        assert row["accuracy_less_floor"] == pytest.approx(100 * (runs["accuracy"][axis].mean() - floor["accuracy"].mean()))
        assert row["collapsed"] == (excess(runs["fid"][axis], floor["fid"]) > 0)


def test_what_trains_all_belongs_to_every_panel(cells):
    whole = cells[cells["ratio"] == 1]
    assert set(whole["way"]) == {"dp-lora"}
    fids = [rows["fid"].tolist() for _, rows in whole[whole["dataset"] == "mnist5k"].groupby("panel")]
    assert len(fids) == 3 and fids[0] == fids[1] == fids[2]


def test_runs_without_noise_are_shown_at_an_infinite_epsilon(swept, cells):
    """Those of epsilon 10, told as `clip-only` tells them, give the same cells."""
    runs = swept.runs.copy()
    ten = runs["epsilon"] == 10
    runs.loc[ten & (runs["method"] == "dp-lora"), ["level", "ratio", "rule"]] = ["matrix", 1.0, "top"]
    runs.loc[ten & (runs["method"] == "random"), "rule"] = "random"
    runs.loc[ten, ["method", "score", "epsilon", "sigma_s", "mechanism"]] = ["clip-only", "energy", np.nan, np.nan, None]
    found = stability_map.prepare(dataclasses.replace(swept, runs=runs))
    due = cells.assign(epsilon=cells["epsilon"].replace(10, math.inf))
    by = ["dataset", "epsilon", "panel", "way", "ratio", "rate"]
    pd.testing.assert_frame_equal(*(table.sort_values(by).reset_index(drop=True) for table in (found, due)), check_dtype=False)
    with theme():
        texts = [ax.get_ylabel() for ax in stability_map.draw(found).axes]
    assert any("no noise, floor" in text for text in texts)


def test_the_edge_of_a_ratio_is_that_of_its_cells(cells):
    for _, line in cells.groupby(["dataset", "panel", "ratio"]):
        found = edge(line["rate"], line["excess"])
        assert set(line["edge"]) == {found.value} and set(line["edge_sign"]) == {found.sign}


@pytest.mark.parametrize(("drawn", "metric"), [(stability_map.draw, "fid"), (stability_map.draw_accuracy, "accuracy_pct")])
def test_the_map_shows_the_numbers_of_its_csv(cells, drawn, metric):
    with theme():
        figure = drawn(cells)
        figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.texts]
    assert len(panels) == 6 and sum(len(ax.texts) for ax in panels) == len(cells)
    assert f"{cells[metric].iloc[0]:.3g}" in panels[0].texts[0].get_text()
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8


def test_no_number_of_the_map_overlaps_another(cells):
    with theme():
        figure = stability_map.draw(cells)
        figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_the_step_line_is_between_the_last_good_and_the_first_collapsed_cell(cells):
    figure = stability_map.draw(cells)
    first = cells[(cells["dataset"] == "mnist5k") & (cells["panel"] == "most salient")]
    x = figure.axes[0].lines[0].get_xdata()[::2]  # one per ratio, from below
    for place, (_, line) in zip(x, first.groupby("ratio"), strict=True):
        good = line["rate"] < place
        assert not line.loc[good, "collapsed"].any()
        assert good.all() or line.loc[~good, "collapsed"].iloc[0]


def test_arrows_mark_edges_beyond_the_rates(cells):
    below = cells.assign(edge=cells["rate"].min(), edge_sign="<")
    (_, left, right) = stability_map.draw(below).axes[0].lines
    assert len(left.get_xdata()) == 3 and len(right.get_xdata()) == 0
    assert (left.get_xdata() < cells["rate"].min()).all()


def test_many_rates_are_drawn_without_numbers(cells):
    more = [cells.assign(rate=cells["rate"] * factor) for factor in (1, 1.3, 1.7, 2.2)]
    figure = stability_map.draw(pd.concat(more))
    assert not any(ax.texts for ax in figure.axes) and "numbers" not in figure.legends[0].get_texts()[-1].get_text()


def test_the_colours_keep_their_order_in_grey():
    greys = [np.dot(to_rgb(colour), stability_map.LUMINANCE) for colour in stability_map.COLOURS]
    assert (np.diff(greys) < -0.05).all()


def test_seed_edges_are_paired_and_between_the_same_rates_as_the_truth(swept, edges):
    row = row_of(edges, dataset="mnist5k", way="dp-lora")
    (truth,) = {true_edge(run) for run in stability_runs(epsilons=(10,)) if run.method == "dp-lora"}
    assert row["edge_seeds"] == 3 and row["edge_sign"] == ""
    assert row["edge_low"] < row["edge"] < row["edge_high"]
    assert 0.02 < row["edge"] < 0.07 and 0.02 < truth < 0.07
    half = row_of(edges, dataset="mnist5k", way=SALIENT, ratio=0.5)
    bounds = stability_edges.seed_edges(swept)
    bounds = bounds[bounds["dataset"] == "mnist5k"].groupby(["way", "ratio"])["bound"].agg(list)
    logs = [math.log(one.value / all.value) for one, all in zip(bounds[SALIENT, 0.5], bounds["dp-lora", 1.0], strict=True)]
    assert half["over_all"] == pytest.approx(math.exp(np.mean(logs)))
    logs = [math.log(one.value / other.value) for one, other in zip(bounds[SALIENT, 0.5], bounds[RANDOM, 0.5], strict=True)]
    assert half["over_random"] == pytest.approx(math.exp(np.mean(logs)))


def test_only_what_can_be_compared_is(edges):
    whole = edges[edges["way"] == "dp-lora"]
    assert whole[["over_all", "over_random"]].isna().all(axis=None)
    random = edges[edges["way"] == RANDOM]
    assert random["over_random"].isna().all() and random["over_all"].notna().all()


def test_the_edges_table_marks_bounds(edges):
    censored = edges[edges["edge_sign"] == ">"]
    assert len(censored) > 0 and censored["edge_low"].isna().all()
    text = markdown(stability_edges.draw(edges))
    assert "| > 0.20 |" in text and text.count("\n| mnist5k") == 7
    bold = stability_edges.draw(edges.assign(over_all=2.0, over_all_low=1.5, over_all_high=3.0, over_random=float("nan")))
    assert bold.rows[1][-2].text == "2.00 [1.50–3.00]" and bold.rows[1][-2].bold


def test_other_figures_ignore_the_other_learning_rates(swept):
    data = ratio_curves.prepare(swept)
    ours = data[(data["series"] == SALIENT) & data["panel"].str.startswith("mnist5k")]
    runs = swept.runs.query("dataset == 'mnist5k' and method == 'dp-sapf' and rule == 'top' and learning_rate.isna()")
    assert sorted(ours["fid"]) == pytest.approx(sorted(runs.groupby("ratio")["fid"].mean()))


@pytest.mark.slow
def test_all_of_it_is_drawn(swept, tmp_path, monkeypatch):
    names = ["stability_map", "stability_map_accuracy", "stability_edges", "tuned_and_shared"]
    monkeypatch.setattr(draw, "ITEMS", [item for item in draw.ITEMS if item.name in names])
    assert draw.draw_all(swept.layout.root, tmp_path) == names
    assert (tmp_path / "stability_edges.md").exists() and (tmp_path / "stability_map_accuracy.pdf").exists()
    table = pd.read_csv(tmp_path / "stability_map.csv")
    assert table["fid"].tolist() == pytest.approx(stability_map.prepare(swept)["fid"].tolist())


@pytest.mark.parametrize("prepare", [stability_map.prepare, stability_edges.prepare])
def test_without_a_sweep_or_a_floor_nothing_is_drawn(swept, results, prepare):
    floorless = swept.runs[swept.runs["method"] != "no-finetune"]
    one_rate = swept.runs[swept.runs["learning_rate"].isna()]
    for missing in (results, *(dataclasses.replace(swept, runs=runs) for runs in (floorless, one_rate))):
        with pytest.raises(MissingStudy, match="two learning rates beside the public model as it is"):
            prepare(missing)


def test_seeds_with_one_rate_each_have_no_edge(swept):
    rate = swept.runs["used_learning_rate"].rank(method="dense") - 1
    apart = swept.runs[rate.isna() | (rate == swept.runs["seed"])]
    with pytest.raises(MissingStudy, match="no seed"):
        stability_edges.prepare(dataclasses.replace(swept, runs=apart))


def test_the_fake_runs_are_those_of_the_config():
    config = parse_config(yaml.safe_load((Path(__file__).parents[2] / "config" / "stability.yaml").read_text(encoding="utf-8")))
    mapped = config.matching(expand({name: config.studies[name] for name in ("whole", "salient", "random")}))
    ids = {run.id.replace("-share-s10", "-energy-s5") for run in mapped}
    assert ids == {run.id for run in stability_runs()}


def test_fake_scores_collapse_where_they_say():
    run = next(run for run in stability_runs() if run.method == "dp-lora" and run.learning_rate == 0.2)
    assert collapsing(run)["fid"] > 30


def test_other_rules_do_not_pass_for_the_most_salient(swept):
    other = swept.runs[swept.runs["rule"] == "top"].assign(rule="gap", fid=1e6)
    mixed = dataclasses.replace(swept, runs=pd.concat([swept.runs, other], ignore_index=True))
    pd.testing.assert_frame_equal(stability_map.prepare(mixed), stability_map.prepare(swept))


def test_two_learning_rates_give_no_edge(swept):
    two = swept.runs[swept.runs["learning_rate"].isna() | (swept.runs["learning_rate"] == swept.runs["learning_rate"].max())]
    with pytest.raises(MissingStudy, match="trained at 3 learning rates"):
        stability_edges.prepare(dataclasses.replace(swept, runs=two))


def test_a_way_that_one_dataset_lacks_keeps_its_title_and_its_ratios(cells):
    """The panel below an empty place: nobody else says what it shows."""
    lacking = cells[~((cells["dataset"] == cells["dataset"].iloc[0]) & (cells["panel"] == "least salient"))]
    lacking = lacking[(lacking["panel"] != "least salient") | lacking["ratio"].isin([1.0, 0.5])]
    with theme():
        figure = stability_map.draw(lacking)
        figure.draw_without_rendering()
    titled = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert set(titled) == set(CHOSEN.values()) and titled["least salient"].get_visible()
    labels = [text.get_text() for text in titled["least salient"].get_yticklabels() if text.get_visible()]
    assert labels == ["50", "100"] and titled["least salient"].yaxis.get_tick_params()["labelleft"]
    assert not titled["random"].yaxis.get_tick_params()["labelleft"]


def test_predicted_edges_stand_beside_the_measured_ones(swept):
    """A rise in proportion to the square of the rate reaches 0.1 at 0.05 in seed 0, at 0.1 in seed 1, nowhere in seed 2."""
    reach = swept.runs["seed"].map({0: 0.05, 1: 0.1, 2: 0.5})
    predicted = 0.1 * (swept.runs["used_learning_rate"] / reach) ** 2
    results = dataclasses.replace(swept, runs=swept.runs.assign(predicted_rise=predicted))
    bounds = stability_edges.seed_edges(results).loc[[0, 1], "predicted"]
    assert bounds.map(lambda bound: bound.value).groupby(level=0).first().tolist() == pytest.approx([0.05, 0.1])
    assert set(stability_edges.prepare(results)["predicted_sign"]) == {">"}
    two = dataclasses.replace(results, runs=results.runs[results.runs["seed"] < 2])
    edges = stability_edges.prepare(two)
    assert edges["predicted"].to_numpy() == pytest.approx(0.005**0.5)
    assert "| 0.071 \\[" in markdown(stability_edges.draw(edges))


def test_runs_at_a_rate_that_noise_allows_are_not_on_the_map(swept):
    auto = swept.runs[swept.runs["learning_rate"] == 0.07].assign(learning_rate="auto", used_learning_rate=0.05)
    mixed = dataclasses.replace(swept, runs=pd.concat([swept.runs, auto], ignore_index=True))
    pd.testing.assert_frame_equal(stability_map.prepare(mixed), stability_map.prepare(swept))
