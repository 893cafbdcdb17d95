import dataclasses

import pandas as pd
import pytest

from paper_figures import tuned_and_shared
from paper_figures.results import MissingStudy
from paper_figures.style import theme

SALIENT = "dp-sapf-matrix"


@pytest.fixture(scope="module")
def data(swept):
    return tuned_and_shared.prepare(swept)


def changed(results, fid):
    """The results with another FID of every run: ``fid`` of a row."""
    runs = results.runs.assign(fid=[fid(row) for row in results.runs.to_dict("records")])
    return dataclasses.replace(results, runs=runs)


def pair(data, dataset, way=SALIENT):
    rows = data[(data["dataset"] == dataset) & (data["way"] == way)].set_index("setting")
    assert sorted(rows.index) == ["own", "shared"]
    return rows


def test_each_way_has_a_row_at_its_own_rate_and_one_at_the_shared(data):
    assert all(sorted(rows["setting"]) == ["own", "shared"] for _, rows in data.groupby(["dataset", "way"]))
    assert set(data["way"].dropna()) == {SALIENT, "random-matrix", f"{SALIENT}-least", "dp-lora"}
    shared = data[data["setting"] == "shared"]
    assert set(shared["rate"]) == {0.02} and set(shared["chosen_by"]) == {"config"}
    own = data[data["setting"] == "own"]
    assert set(own["chosen_by"]) == {"proxy"}
    assert (own["dataset"] + " " + own["proxies"]).map(sorted).map("".join).nunique() == 1, "each on the other dataset"


def test_scores_are_those_of_the_summary(swept, data):
    row = pair(data, "mnist5k").loc["shared"]
    source = swept.summary.query("dataset == 'mnist5k' and method == 'dp-sapf' and rule == 'top' and learning_rate.isna()")
    (source,) = source[source["ratio"] == swept.headline["ratio"]].to_dict("records")
    assert row["fid"] == pytest.approx(source["fid_mean"])
    assert row["accuracy_pct_interval95"] == pytest.approx(100 * source["accuracy_interval95"])


def test_the_rate_is_chosen_on_the_other_dataset_and_its_own_fid_changes_nothing(swept):
    best = {"mnist5k": 0.07, "histo-mini": 0.2}
    results = changed(swept, lambda row: 1.0 if row["used_learning_rate"] == best[row["dataset"]] else 9.0)
    data = tuned_and_shared.prepare(results)
    assert pair(data, "mnist5k").loc["own", "rate"] == 0.2
    assert pair(data, "histo-mini").loc["own", "rate"] == 0.07
    assert pair(data, "mnist5k").loc["own", "fid"] == 9.0


def test_several_proxies_have_equal_weight():
    rows = [("a", 1.0, 5.0), ("a", 2.0, 5.0), ("b", 1.0, 100.0), ("b", 2.0, 130.0), ("c", 1.0, 2.0), ("c", 2.0, 1.0)]
    rows += [("d", 1.0, 1.0)]  # one rate: no proxy
    table = pd.DataFrame(rows, columns=["dataset", "rate", "fid"]).assign(public_model="m", epsilon=1.0, way="w", auto=False)
    rate, proxies = tuned_and_shared.proxy_rate(table[table["dataset"] == "a"], table)
    assert (rate, proxies) == (2.0, ["b", "c"]), "a factor of two on c outweighs 1.3 on b"


def test_one_dataset_is_not_drawn(swept):
    alone = dataclasses.replace(swept, runs=swept.runs[swept.runs["dataset"] == "mnist5k"])
    with pytest.raises(MissingStudy, match="on two datasets"):
        tuned_and_shared.prepare(alone)


def test_without_the_configs_own_rate_it_is_not_drawn(swept):
    runs = swept.runs[swept.runs["learning_rate"].notna() | (swept.runs["method"] == "no-finetune")]
    with pytest.raises(MissingStudy, match="the config's own"):
        tuned_and_shared.prepare(dataclasses.replace(swept, runs=runs))


def test_the_figure_has_two_panels_per_dataset_and_marks_of_both_kinds(data):
    with theme():
        figure = tuned_and_shared.draw(data)
        figure.draw_without_rendering()
    assert [ax.get_xlabel() for ax in figure.axes] == ["accuracy (%)", "FID (test-v1)"] * 2
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(names) == 4 and names[0].startswith("most salient") and "0.02 (shared)" in names[0]
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8
