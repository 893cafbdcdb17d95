import dataclasses
import typing

import numpy as np
import pandas as pd
import pytest

from dpsapf.experiment.columns import NEARLY
from dpsapf.experiment.methods import METHODS, TRAINING_AXES, Level
from paper_figures import (
    all_metrics,
    epsilon_curves,
    main_table,
    paper_reference,
    privacy_cost,
    ratio_curves,
    resources,
    selection_map,
)
from paper_figures.results import at_headline, label, series, strictly
from paper_figures.style import EXTERNAL, LOOKS, PROXIES
from paper_figures.tables import Table


def only(table, **values):
    for name, value in values.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def changed(results, **tables):
    return dataclasses.replace(results, **tables)


def test_headline_is_what_most_runs_have(results):
    assert results.headline == {"ratio": 0.3, "sigma_s": 5.0, "epsilon": 10.0}


def test_headline_tie_goes_to_the_default_then_to_the_least(results):
    runs = results.runs.head(4).assign(ratio=[0.1, 0.3, 0.3, 0.1], sigma_s=[20.0, 10.0, 10.0, 20.0], epsilon=1.0)
    assert changed(results, runs=runs).headline == {"ratio": 0.3, "sigma_s": 10.0, "epsilon": 1.0}


def test_at_headline_keeps_what_has_no_choice(results):
    table = pd.DataFrame({"dataset": "d", "public_model": "m", "method": "dp-sapf", "level": "matrix"}, index=range(4))
    table = table.assign(epsilon=[10.0, 10.0, 1.0, 1.0], ratio=0.3, sigma_s=[5.0, 25.0, 20.0, 25.0])
    table = table.assign(score="energy", mechanism="gaussian", candidates="attention", adapter="lora")
    table = table.assign(rule="top", **dict.fromkeys(TRAINING_AXES))
    assert at_headline(table, results, "ratio", "sigma_s")["sigma_s"].tolist() == [5.0, 20.0, 25.0]


def test_every_method_and_level_has_a_name_and_a_look_of_its_own():
    levels = {name: typing.get_args(Level) if "level" in row.uses else () for name, row in METHODS.items()}
    names = {f"{name}-{level}" if level else name for name in METHODS for level in (levels[name] or ("",))}
    names |= {f"{name}-{level}" for name in PROXIES for level in typing.get_args(Level)}
    assert names | {"real", *EXTERNAL} == set(LOOKS)
    assert len({look.label for look in LOOKS.values()}) == len(LOOKS)
    assert len({(str(look.colour), look.marker) for look in LOOKS.values()}) == len(LOOKS)


def test_figures_hold_the_other_choices_at_what_most_runs_have(results):
    other = results.summary.assign(score="vote")
    both = pd.concat([results.summary, other])
    kept = strictly(both, results)
    assert set(kept["score"].dropna()) == {"energy"} and len(kept) > 0


def test_label_names_sigma_s_only_off_the_headline(results):
    row = {"method": "dp-sapf", "level": "matrix", "ratio": 0.3, "sigma_s": 5.0}
    assert label(row, results.headline) == "DP-SAPF, matrices 30 %"
    assert label(row | {"sigma_s": 25.0}, results.headline) == "DP-SAPF, matrices 30 %, σ_s = 25"
    assert series({"method": "dp-lora", "level": np.nan}) == "dp-lora"


def test_main_table_has_the_summary_values(results):
    data = main_table.prepare(results)
    row = only(data, dataset="mnist5k", series="dp-sapf-matrix", epsilon=10.0)
    source = only(results.summary, dataset="mnist5k", method="dp-sapf", level="matrix", ratio=0.3, epsilon=10.0)
    assert row["accuracy_pct"] == 100 * source["accuracy_mean"]
    assert row["accuracy_pct_interval95"] == 100 * source["accuracy_interval95"]
    assert (row["fid"], row["fid_interval95"]) == (source["fid_mean"], source["fid_interval95"])
    assert only(data, dataset="mnist5k", series="real")["accuracy_pct"] == pytest.approx(93)
    assert np.isnan(only(data, dataset="oct-mini", series="real")["fid"])
    assert only(data, dataset="mnist5k", series="dp-full")["trainable_parameters"] == 1_064_000
    assert set(data["ratio"].dropna()) == {0.3}


def test_best_is_sought_among_methods_that_train_per_dataset_and_epsilon(results):
    summary = results.summary.copy()
    at = (summary["dataset"] == "mnist5k") & (summary["epsilon"] == 10) & (summary["ratio"].isna() | (summary["ratio"] == 0.3))
    summary.loc[at, "accuracy_mean"] = summary.loc[at, "method"].map({"dp-sapf": 0.4, "dp-lora": 0.7, "dp-full": 0.5})
    summary.loc[at, "fid_mean"] = summary.loc[at, "method"].map({"dp-sapf": 30.0, "dp-lora": 20.0, "dp-full": 10.0})
    summary.loc[summary["method"] == "no-finetune", ["accuracy_mean", "fid_mean"]] = [0.9, 1.0]
    data = main_table.prepare(changed(results, summary=summary))
    ten = data[(data["dataset"] == "mnist5k") & (data["epsilon"] == 10)]
    assert ten.loc[ten["best_accuracy_pct"], "series"].tolist() == ["dp-lora"]
    assert ten.loc[ten["best_fid"], "series"].tolist() == ["dp-full"]
    table = main_table.draw(data)
    bold = {row[1].text: [cell.text for cell in row if cell.bold] for row in table.rows if row[2].text == "10"}
    assert [text.split(" ± ")[0] for text in bold["DP-LoRA"]] == ["70.0"]
    assert [text.split(" ± ")[0] for text in bold["DP-Finetune (full UNet)"]] == ["10.0"]
    assert not any(cell.bold for row in table.rows[:2] for cell in row)  # ceiling and floor


@pytest.mark.parametrize("figure", [main_table, all_metrics, epsilon_curves])
def test_a_target_that_was_not_nearly_spent_is_told_with_what_was(results, figure):
    """And only then; the larger certifier counts."""

    def told(**spent):
        runs = results.runs.assign(**{f"spent_epsilon_{name}": share * results.runs["epsilon"] for name, share in spent.items()})
        data = figure.prepare(changed(results, runs=runs))
        drawn = figure.draw(data)
        return drawn.note if isinstance(drawn, Table) else drawn.get_suptitle()

    note = "Spent: {0:g} of target ε 1, {1:g} of target ε 10; docs/privacy.md says why."
    assert note.format(0.5, 5) in told(pld=0.4, prv=0.5)
    assert note.format(0.9, 9) in told(pld=0.9, prv=0.3)
    assert "Spent" not in told(pld=0.1, prv=NEARLY) and "Spent" not in told(pld=0.99, prv=0.99)


def test_what_other_groups_and_the_floor_spent_is_not_told(results):
    assert results.spent_note == "" and results.runs["epsilon"].isna().any()


def test_ratio_curves_have_the_sweep_and_its_references(results):
    data = ratio_curves.prepare(results)
    assert data["panel"].unique().tolist() == ["mnist5k, public-mini, ε = 10"]
    curve = data[data["series"] == "dp-sapf-matrix"].sort_values("x")
    source = results.summary.query("method == 'dp-sapf' and level == 'matrix' and epsilon == 10 and dataset == 'mnist5k'")
    assert curve["x"].tolist() == pytest.approx([10, 30, 50, 90])
    assert curve["fid"].tolist() == source.sort_values("ratio")["fid_mean"].tolist()
    references = data[data["reference"]].set_index("series")
    assert set(references.index) == {"dp-lora", "no-finetune", "real"}
    assert references.loc["dp-lora", "x"] == 100


def test_ratio_figure_draws_a_line_per_reference_and_the_curve(results):
    figure = ratio_curves.draw(ratio_curves.prepare(results))
    accuracy, fid = figure.axes
    assert (accuracy.get_ylabel(), fid.get_ylabel()) == ("accuracy (%)", "FID (test-v1)")
    assert "%" in accuracy.get_xlabel()
    horizontal = [[line for line in ax.lines if list(line.get_xdata()) == [0, 1]] for ax in (accuracy, fid)]
    assert [len(lines) for lines in horizontal] == [3, 2]  # real images have no FID
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "DP-SAPF, matrices"
    assert len(labels) == len(set(labels)) == 5


def test_epsilon_curves_have_the_sweep_of_each_method(results):
    data = epsilon_curves.prepare(results)
    assert set(data["panel"]) == {"mnist5k, public-mini"}
    for name in ("dp-sapf-matrix", "dp-lora"):
        assert sorted(data.loc[data["series"] == name, "x"]) == [1, 10]
    figure = epsilon_curves.draw(data)
    assert {ax.get_xscale() for ax in figure.axes} == {"log"}
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "10"]


def test_epsilon_curve_over_two_sigma_s_says_so(results):
    summary = results.summary.copy()
    summary.loc[(summary["method"] == "dp-sapf") & (summary["epsilon"] == 1), "sigma_s"] = 25.0
    data = epsilon_curves.prepare(changed(results, summary=summary))
    assert set(data.loc[data["series"] == "dp-sapf-matrix", "label"]) == {"DP-SAPF, matrices 30 %, σ_s = 5 or 25"}
    assert set(data.loc[data["series"] == "dp-sapf-layer", "label"]) == {"DP-SAPF, layers 30 %"}


def test_selection_map_has_the_share_of_seeds_and_the_mean_score(results):
    data = selection_map.prepare(results)
    matrix = data["matrix"].iloc[3]
    source = results.selections.query("dataset == 'mnist5k' and level == 'matrix' and ratio == 0.3 and epsilon == 10")
    source = source[source["matrix"] == matrix]
    assert len(source) == 2
    row = only(data, dataset="mnist5k", level="matrix", ratio=0.3, matrix=matrix)
    assert row["selected_share"] == source["selected"].mean()
    assert row["noisy_score"] == pytest.approx(source["noisy_score"].mean())
    assert data["relative_score"].between(0, 1).all()
    assert data.groupby("dataset")["relative_score"].max().tolist() == [1, 1]


def test_selection_map_draws_every_matrix_once_from_input_to_output(results):
    data = selection_map.prepare(results)
    figure = selection_map.draw(data)
    scores, shares = figure.axes[0].images
    first = data[(data["dataset"] == "mnist5k") & (data["level"] == "matrix") & (data["ratio"] == 0.1)]
    assert first["block"].unique().tolist() == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert sorted(first["matrix"]) == sorted(results.selections["matrix"].unique())
    listed = results.selections["matrix"].unique().tolist()
    assert all(rows["matrix"].map(listed.index).is_monotonic_increasing for _, rows in first.groupby("block"))
    np.testing.assert_array_equal(scores.get_array()[:, 0], first["relative_score"])
    np.testing.assert_array_equal(shares.get_array()[:, 0], first["selected_share"])
    assert shares.get_array().shape == (len(first), 5)  # 10, 30, 50, 90 % of matrices and 30 % of layers


def test_selection_map_keeps_the_order_of_a_network_that_is_no_unet(results):
    selections = results.selections.assign(block=results.selections["block"].str.replace(r"\w+", "layers", regex=True, n=1))
    data = selection_map.prepare(changed(results, selections=selections))
    assert data["matrix"].unique().tolist() == selections["matrix"].unique().tolist()


def test_selection_map_of_one_column_is_narrow(results):
    data = selection_map.prepare(results)
    one = data[(data["dataset"] == "oct-mini") & (data["ratio"] == 0.3)]
    assert selection_map.draw(one).get_figwidth() < 0.7 * selection_map.draw(data).get_figwidth()


@pytest.mark.parametrize(
    ("layer", "short"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1", "down 0.1.0 self"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2", "mid.0.0 cross"),
        ("layers.3.attention", "layers.3.attention"),
    ],
)
def test_short_name(layer, short):
    assert selection_map.short_name(layer) == short


def test_privacy_cost_by_hand(results):
    row = only(privacy_cost.prepare(results), dataset="mnist5k", method="dp-sapf", epsilon=1.0)
    assert row["selection_share_pct"] == pytest.approx(40)  # 0.4 of 1
    assert row["added_noise_pct"] == pytest.approx(100 * (0.83 / 0.8 - 1))
    lora = only(privacy_cost.prepare(results), dataset="oct-mini", method="dp-lora")
    assert np.isnan(lora["selection_share_pct"])


def test_resources_are_means_over_seeds(results):
    data = resources.prepare(results)
    assert only(data, dataset="mnist5k", series="dp-lora")["finetune_seconds"] == 95.5  # 95 and 96
    floor = [cell.text for cell in resources.draw(only_rows(data, "no-finetune")).rows[0]]
    assert floor[3:] == ["0", "0", "900", "—", "40"]


def only_rows(data, name):
    return data[data["series"] == name].head(1)


@pytest.mark.parametrize(
    ("prepare", "file"), [(paper_reference.prepare_ratio, "selection_ratio"), (paper_reference.prepare_epsilon, "epsilon_sweep")]
)
def test_published_values_are_those_of_the_reference_file_and_labelled(results, prepare, file):
    data, source = prepare(results), pd.read_csv(paper_reference.REFERENCE / f"{file}.csv")
    assert data["fid"].tolist() == source["fid"].tolist()
    assert data["accuracy_pct"].tolist() == source["accuracy_pct"].tolist()
    assert data["label"].str.contains("published").all()
    assert data["panel"].str.startswith("Published: ").all()
