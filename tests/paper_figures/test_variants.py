import dataclasses

import pandas as pd
import pytest
from matplotlib.text import Text

from dpsapf.experiment.methods import METHODS
from paper_figures import draw, epsilon_curves, main_table, variants
from paper_figures.results import MissingStudy, load_results
from paper_figures.style import theme
from paper_figures.tables import latex, markdown
from tests.fake_results import variant_runs, write_results


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("variants"), variant_runs(("mnist5k", "histo-mini")), images=False)


def test_every_method_of_every_dataset_is_drawn_with_its_interval(root):
    results = load_results(root)
    data = variants.prepare(results)
    measured = data[data["source"] != "published"]
    assert (measured.groupby("panel").size() == len(METHODS) + 1).all()  # every method and the ceiling
    source = results.summary[(results.summary["dataset"] == "mnist5k") & (results.summary["method"] == "no-lora")].iloc[0]
    row = measured[measured["panel"].str.startswith("mnist5k") & (measured["series"] == "no-lora-matrix")].iloc[0]
    assert row["accuracy_pct"] == 100 * source["accuracy_mean"]
    assert row["accuracy_pct_interval95"] == 100 * source["accuracy_interval95"]
    assert (row["fid"], row["fid_interval95"]) == (source["fid_mean"], source["fid_interval95"])


def test_published_numbers_are_the_files(root):
    data = variants.prepare(load_results(root))
    published = data[data["source"] == "published"]
    table = pd.read_csv(variants.REFERENCE)
    assert sorted(published["accuracy_pct"]) == sorted(table["accuracy_pct"]) and sorted(published["fid"]) == sorted(table["fid"])
    best = published[published["panel"].str.contains("CIFAR-10")].set_index("series")["accuracy_pct"]
    assert best["dp-sapf-matrix"] == table.query("dataset == 'CIFAR-10' and variant == 'DP-SAPF'")["accuracy_pct"].item()


def test_it_is_drawn_only_where_variants_were_run(root, results, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "ITEMS", [item for item in draw.ITEMS if item.name == "variants"])
    assert draw.draw_all(root, tmp_path) == ["variants"]
    with pytest.raises(MissingStudy, match="3 of the variants"):
        variants.prepare(results)


def test_points_stand_where_the_data_are(root):
    data = variants.prepare(load_results(root))
    figure = variants.draw(data)
    left = figure.axes[0]
    rows = data[data["panel"] == data["panel"].iloc[0]]
    assert [tick.get_text() for tick in left.get_yticklabels()] == rows["label"].tolist()
    drawn = [line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("|", "None")]
    assert set(rows["accuracy_pct"].round(6)) <= {round(float(value), 6) for value in drawn}


def test_floor_and_ceiling_are_lines(root):
    data = variants.prepare(load_results(root))
    rows = data[(data["panel"] == data["panel"].iloc[0]) & data["reference"]].set_index("series")
    assert set(rows.index) == {"real", "no-finetune"}
    accuracy, fid = variants.draw(data).axes[:2]
    lines = [{line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]} for ax in (accuracy, fid)]
    assert lines[0] == set(rows["accuracy_pct"])
    assert rows.loc["no-finetune", "fid"] in lines[1]


def test_no_text_of_the_variants_is_smaller_than_8_points(root):
    with theme():
        figure = variants.draw(variants.prepare(load_results(root)))
        figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 8


def test_main_table_never_marks_what_has_no_guarantee(root):
    results = load_results(root)
    summary = results.summary.copy()
    summary.loc[summary["method"] == "no-dp", ["accuracy_mean", "fid_mean"]] = [0.99, 0.1]
    table = main_table.draw(main_table.prepare(dataclasses.replace(results, summary=summary)))
    row = next(row for row in table.rows if row[1].text.startswith("without DP"))
    assert row[2].text == "∞"
    assert not any(cell.bold for cell in row)
    assert "the best method under differential privacy" in markdown(table)
    assert "the best method under differential privacy" in latex(table)


def test_variants_at_one_epsilon_are_left_to_their_own_figure(results, root):
    only = load_results(root).summary.query("method == 'random' and dataset == 'mnist5k'")
    both = dataclasses.replace(results, summary=pd.concat([results.summary, only]))
    assert set(epsilon_curves.prepare(both)["series"]) == set(epsilon_curves.prepare(results)["series"])
