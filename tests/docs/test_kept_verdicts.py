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
