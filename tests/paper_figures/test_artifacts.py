"""The paper's studies beyond the demo: sigma_s, mechanisms, a transformer, no privacy, and published curves beside ours."""

import dataclasses

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from dpsapf.experiment.columns import OPTIONAL_METRICS, SPREAD_METRICS
from dpsapf.experiment.runs import Study, expand
from paper_figures import (
    all_metrics,
    draw,
    epsilon_curves,
    published,
    ratio_curves,
    selection_map,
    selection_table,
    sigma_sensitivity,
    transfer,
    without_dp,
)
from paper_figures.results import MissingStudy, load_results
from paper_figures.style import LOOKS, PUBLISHED, theme
from tests.fake_results import write_results

SEEDS = (0, 1)
ON_PAPERS = {"dataset": ("cifar10", "celeba"), "public_model": ("sd-v1-5", "sd-2-1-base"), "seed": SEEDS}
STUDIES = {
    "main": Study(method=("dp-sapf", "dp-lora", "no-finetune", "clip-only", "no-dp"), **ON_PAPERS),
    "ratios": Study(method=("dp-sapf",), level=("matrix", "layer"), ratio=(0.1, 0.3, 0.7), **ON_PAPERS),
    "epsilons": Study(method=("dp-sapf", "dp-lora"), epsilon=(1, 10), **ON_PAPERS),
    "noise": Study(method=("dp-sapf",), sigma_s=(5, 10, 25), **ON_PAPERS),
    "mechanisms": Study(method=("dp-sapf",), mechanism=("gaussian", "exponential", "ptr"), **ON_PAPERS),
    "transformer": Study(
        dataset=("cifar10",), public_model=("z-image",), method=("dp-sapf", "dp-lora"), level=("matrix", "block"), seed=SEEDS
    ),
}
NEW = ("sigma_sensitivity", "transfer", "without_dp")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("artifacts") / "paper", expand(STUDIES), images=False)


@pytest.fixture(scope="module")
def paper(root):
    return load_results(root)


def summary_row(results, **values):
    table = results.summary
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


SAPF = {"dataset": "celeba", "public_model": "sd-v1-5", "method": "dp-sapf", "level": "matrix", "ratio": 0.3, "epsilon": 10.0}


@pytest.mark.parametrize("name", NEW)
def test_new_figures_are_drawn_not_blank_and_legible(root, paper, name, tmp_path, monkeypatch):
    (item,) = [item for item in draw.ITEMS if item.name == name]
    monkeypatch.setattr(draw, "ITEMS", [item])
    assert draw.draw_all(root, tmp_path) == [name]
    pixels = matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3]
    assert len(np.unique(pixels @ [1, 256, 256**2])) > 50
    with theme():
        figure = item.draw(item.prepare(paper))
        figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 8


def test_sigma_curves_are_the_summarys_at_one_epsilon_and_ratio(paper):
    data = sigma_sensitivity.prepare(paper)
    assert data["panel"].nunique() == 4
    rows = data[(data["panel"] == "celeba, sd-v1-5, ε = 10, 30 % selected") & (data["series"] == "dp-sapf-matrix")].set_index("x")
    assert sorted(rows.index) == [5, 10, 25]
    for sigma in (5, 25):
        source = summary_row(paper, **SAPF, sigma_s=sigma, mechanism="gaussian")
        assert rows.loc[sigma, "fid"] == source["fid_mean"] and rows.loc[sigma, "fid_interval95"] == source["fid_interval95"]
    assert set(data.loc[data["reference"], "series"]) == {"dp-lora", "no-finetune", "real"}
    axis = sigma_sensitivity.draw(data).axes[0]
    assert axis.get_xscale() == "log" and [label.get_text() for label in axis.get_xticklabels()] == ["5", "10", "25"]


def test_without_dp_goes_from_the_least_epsilon_to_none_between_floor_and_ceiling(paper):
    data = without_dp.prepare(paper)
    panel = data[data["panel"] == "celeba, sd-v1-5, 30 % selected"]
    assert panel["label"].tolist() == [
        "DP-SAPF, matrices, ε = 1",
        "DP-SAPF, matrices, ε = 10",
        "clipping, no noise, matrices",
        "without DP, matrices",
        "real images (ceiling)",
        "no fine-tuning (floor)",
    ]
    assert panel["reference"].tolist() == [False] * 4 + [True] * 2
    source = summary_row(paper, dataset="celeba", public_model="sd-v1-5", method="no-dp")
    assert panel["fid"].iloc[3] == source["fid_mean"]


def test_transfer_has_ours_above_the_published(paper):
    data = transfer.prepare(paper)
    ours = data[data["source"] != "published"]
    assert set(ours["panel"]) == {"cifar10, z-image, ε = 10"} | {
        f"{name}, {model}, ε = 10" for name in ON_PAPERS["dataset"] for model in ON_PAPERS["public_model"]
    }
    mechanisms = ours[ours["panel"] == "celeba, sd-v1-5, ε = 10"]
    assert mechanisms["series"].tolist() == ["gaussian", "exponential", "ptr"]
    assert mechanisms["fid"].iloc[2] == summary_row(paper, **SAPF, sigma_s=5.0, mechanism="ptr")["fid_mean"]
    block = ours[(ours["panel"] == "cifar10, z-image, ε = 10") & (ours["series"] == "dp-sapf-block")]
    assert block["fid"].item() == summary_row(paper, public_model="z-image", level="block")["fid_mean"]
    source = pd.read_csv(published.REFERENCE / "transfer.csv")
    theirs = data[data["source"] == "published"]
    assert sorted(theirs["fid"]) == sorted(source["fid"]) and theirs["panel"].str.startswith("Published: ").all()


def test_matrices_stand_against_layers_for_every_dataset_and_model(paper):
    data = ratio_curves.prepare(paper)
    assert data["panel"].nunique() == 4
    for _, panel in data.groupby("panel"):
        for level in ("matrix", "layer"):
            assert sorted(panel.loc[panel["series"] == f"dp-sapf-{level}", "x"]) == pytest.approx([10, 30, 70])


@pytest.mark.parametrize(
    ("module", "file", "axis", "scale", "panels"),
    [(ratio_curves, "selection_ratio", "selection_ratio", 100, 4), (epsilon_curves, "epsilon_sweep", "epsilon", 1, 2)],
)
def test_published_curves_stand_beside_ours_where_the_paper_has_them(paper, module, file, axis, scale, panels):
    data = module.prepare(paper)
    theirs = data[data["series"] == "published"]
    assert theirs["panel"].nunique() == panels and set(theirs["label"]) == {PUBLISHED.label}
    source = pd.read_csv(published.REFERENCE / f"{file}.csv")
    source = source[(source["dataset"] == "CelebA") & (source["public_model"] == "SD-v1-5")]
    rows = theirs[theirs["panel"].str.startswith("celeba, sd-v1-5")].sort_values("x")
    assert rows["x"].tolist() == pytest.approx([scale * value for value in source[axis]])
    assert rows["fid"].tolist() == source["fid"].tolist()
    labels = [text.get_text() for text in module.draw(data).legends[0].get_texts()]
    assert labels.count(PUBLISHED.label) == 1
    assert PUBLISHED.label not in {look.label for look in LOOKS.values()}


def test_no_published_curve_stands_beside_another_dataset(results):
    assert "published" not in set(ratio_curves.prepare(results)["series"]) | set(epsilon_curves.prepare(results)["series"])


def test_selection_table_sums_the_map_up(results):
    data, whole = selection_table.prepare(results), selection_map.prepare(results)
    row = data[(data["dataset"] == "mnist5k") & (data["level"] == "matrix") & (data["ratio"] == 0.3)].set_index("block")
    source = whole[(whole["dataset"] == "mnist5k") & (whole["level"] == "matrix") & (whole["ratio"] == 0.3)]
    assert list(row.index) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    of_block = source[source["block"] == "mid_block"]
    assert row.loc["mid_block", "matrices"] == len(of_block)
    assert row.loc["mid_block", "selected_pct"] == pytest.approx(100 * of_block["selected_share"].mean())
    assert row.loc["mid_block", "score_pct"] == pytest.approx(100 * of_block["noisy_score"].sum() / source["noisy_score"].sum())
    values = of_block[of_block["projection"] == "to_v"]["selected_share"]
    assert row.loc["mid_block", "selected_pct_of_to_v"] == pytest.approx(100 * values.mean())
    assert row["score_pct"].sum() == pytest.approx(100)
    assert (row["selected_pct"] * row["matrices"]).sum() / row["matrices"].sum() == pytest.approx(30, abs=1)


@pytest.mark.parametrize("module", [sigma_sensitivity, transfer, without_dp])
def test_without_their_studies_they_are_not_drawn(results, module):
    with pytest.raises(MissingStudy, match="^no "):
        module.prepare(results)


def test_without_a_model_that_transfers_mechanisms_alone_are_drawn(paper):
    summary = paper.summary[paper.summary["public_model"] != "z-image"]
    data = transfer.prepare(dataclasses.replace(paper, summary=summary))
    assert not data[data["source"] != "published"]["panel"].str.contains("z-image").any()


def test_every_metric_that_has_a_name_for_readers_is_a_column():
    assert set(all_metrics.NAMES) <= {*SPREAD_METRICS, *OPTIONAL_METRICS}


def test_all_metrics_are_those_that_runs_have_whatever_they_are(paper):
    data = all_metrics.prepare(paper)
    row = data[(data["dataset"] == "celeba") & (data["public_model"] == "sd-v1-5") & (data["series"] == "dp-lora")]
    source = summary_row(paper, dataset="celeba", public_model="sd-v1-5", method="dp-lora", epsilon=10.0)
    of_ten = row[row["epsilon"] == 10].iloc[0]
    for metric in ("accuracy", "fid", "kid", "precision", "recall"):
        assert of_ten[f"{metric}_mean"] == source[f"{metric}_mean"]
        assert of_ten[f"{metric}_interval95"] == source[f"{metric}_interval95"]
    header = all_metrics.draw(data).header
    assert header[5:] == (
        "accuracy ↑",
        "macro F1 ↑",
        "calibration error ↓",
        "FID ↓",
        "KID ↓",
        "precision ↑",
        "recall ↑",
    )


def test_a_metric_of_another_version_is_a_column_and_an_absent_one_is_none(paper):
    changed = paper.summary.drop(columns=["recall_mean", "recall_sd", "recall_interval95"])
    changed = changed.assign(coverage_mean=0.5, coverage_interval95=0.1, novelty_mean=2.0, novelty_interval95=np.nan)
    changed = changed.assign(density_mean=np.nan, density_interval95=np.nan)
    table = all_metrics.draw(all_metrics.prepare(dataclasses.replace(paper, summary=changed)))
    assert "recall ↑" not in table.header and "density ↑" not in table.header
    assert table.header[-3:] == ("precision ↑", "coverage ↑", "novelty")
    assert [cell.text for cell in table.rows[0]][-2:] == ["0.500 ± 0.100", "2.00"]
