"""The verdicts that are kept are what the kept tables say: none is typed."""

import re
from pathlib import Path

import pandas as pd
import pytest

from paper_figures.results import load_results, with_axes
from paper_figures.tables import markdown
from paper_figures.verdicts import draw, judge_all

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def folders():
    line = next(line for line in (REFERENCE / "README.md").read_text(encoding="utf-8").splitlines() if "`verdicts.csv`" in line)
    folders = re.search(r"folders (.*), in this order", line)[1].split(", ")
    assert sorted(folders) == sorted(path.parents[1].name for path in REFERENCE.glob("*/tables/runs.csv"))
    return folders


@pytest.fixture(scope="module")
def judged(folders):
    return judge_all([load_results(REFERENCE / folder, selections_needed=False) for folder in folders])


def test_the_csv_is_what_the_tables_say(judged):
    kept = pd.read_csv(REFERENCE / "verdicts.csv", keep_default_na=False, na_values=[""])
    texts = ["kind", "claim", "metric", "verdict", "why", "comparisons", "ahead", "level", "behind"]
    assert kept[texts].to_dict("records") == judged[texts].to_dict("records")
    for name in ("ours", "low", "high", "margin", "seeds_needed"):
        assert kept[name].to_numpy(float) == pytest.approx(judged[name].to_numpy(float), nan_ok=True, rel=1e-9)


def test_the_text_is_that_of_the_csv(judged):
    assert (REFERENCE / "verdicts.md").read_text(encoding="utf-8") == markdown(draw(judged))


def test_every_folder_is_judged_or_named_with_the_reason(judged, folders):
    left_out = judged[judged["kind"] == "results folder"].set_index("claim")["why"]
    contributes = set(judged["where"].str.extract(r"\(([\w-]+)\)$")[0].dropna())
    assert {"tuned", "stability", "variants"} <= contributes
    assert not contributes & set(left_out.index), "a folder that contributes is not left out"
    text = (REFERENCE / "verdicts.md").read_text(encoding="utf-8")
    assert all(f"{folder}: {reason}" in text for folder, reason in left_out.items())


@pytest.mark.parametrize("claim", ["dp-lora", "random"])
def test_all_that_has_both_sides_is_judged(judged, folders, claim):
    """Once for each dataset, epsilon and kind of learning rate that a folder has both of: runs of five seeds do not get lost."""
    wanted = set()
    for folder in folders:
        runs = with_axes(pd.read_csv(REFERENCE / folder / "tables" / "runs.csv", low_memory=False))
        runs = runs[runs["learning_rate"].isna() | (runs["learning_rate"] == "auto")]
        top = runs[(runs["method"] == "dp-sapf") & (runs["level"] == "matrix") & (runs["ratio"] == 0.3)]
        top = top[top["rule"].isna() | (top["rule"] == "top")]
        other = runs[(runs["method"] == claim) & (runs["ratio"].isna() | (runs["ratio"] == 0.3))]
        keys = ["dataset", "epsilon", "learning_rate"]
        wanted |= set(map(str, top[keys].merge(other[keys]).drop_duplicates().itertuples(index=False, name=None)))
    rows = judged[(judged["kind"] == "claim") & (judged["claim"] == claim)]
    assert set(rows["comparisons"]) == {len(wanted)}
