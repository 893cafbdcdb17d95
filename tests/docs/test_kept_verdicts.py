"""The verdicts that are kept are what the kept tables say: none is typed."""

import re
from pathlib import Path

import pandas as pd
import pytest

from paper_figures.results import load_results
from paper_figures.tables import markdown
from paper_figures.verdicts import draw, judge_all

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def judged():
    line = next(line for line in (REFERENCE / "README.md").read_text(encoding="utf-8").splitlines() if "`verdicts.csv`" in line)
    folders = re.search(r"folders (.*), in this order", line)[1].split(", ")
    assert sorted(folders) == sorted(path.parents[1].name for path in REFERENCE.glob("*/tables/runs.csv"))
    return judge_all([load_results(REFERENCE / folder, selections_needed=False) for folder in folders])


def test_the_csv_is_what_the_tables_say(judged):
    kept = pd.read_csv(REFERENCE / "verdicts.csv", keep_default_na=False, na_values=[""])
    texts = ["kind", "claim", "metric", "verdict", "why", "comparisons", "reproduced", "not_reproduced"]
    assert kept[texts].to_dict("records") == judged[texts].to_dict("records")
    for name in ("ours", "low", "high", "p_corrected"):
        assert kept[name].to_numpy(float) == pytest.approx(judged[name].to_numpy(float), nan_ok=True, rel=1e-9)


def test_the_text_is_that_of_the_csv(judged):
    assert (REFERENCE / "verdicts.md").read_text(encoding="utf-8") == markdown(draw(judged))


def test_every_folder_that_has_both_methods_is_judged(judged):
    both = {path.parents[1].name for path in REFERENCE.glob("*/tables/runs.csv") if {"dp-sapf", "dp-lora"} <= methods(path)}
    left_out = set(judged.loc[judged["kind"] == "results folder", "claim"])
    assert "tuned" in both and not both & left_out
    text = (REFERENCE / "verdicts.md").read_text(encoding="utf-8")
    assert all(f"{folder}: No two of its runs" in text for folder in left_out)


def methods(path):
    return set(pd.read_csv(path, low_memory=False)["method"])
