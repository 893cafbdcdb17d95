"""Every kept run and comparison is one that a shipped config makes: the one that results/reference/README.md names."""

import re
from pathlib import Path

import pandas as pd
import pytest

from dpsapf.experiment.methods import METHODS
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.settings import parse_config

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
KEPT = sorted(path.parents[1].name for path in REFERENCE.glob("*/tables/runs.csv"))
COMPARISONS = {
    "saliency_agreement": "compare_scores",
    "ranking_stability": "compare_rankings",
    "fragility": "measure_fragility",
}
STUDIES = sorted(path for path in (ROOT / "config").glob("*.yaml") if "\nstudies:" in path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # configs name their registries from there


def sources():
    """What the table of folders says each one is of: folder to text."""
    rows = re.findall(r"^\| (\S+) \| (.*config/.*?) \|", (REFERENCE / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def load(path):
    return parse_config(load_yaml(path))


def configs(folder):
    return [load(ROOT / name) for name in re.findall(r"config/\S+?\.yaml", sources()[folder])]


def runs(folder):
    return pd.read_csv(REFERENCE / folder / "tables" / "runs.csv", low_memory=False)


def test_every_kept_folder_names_its_config():
    assert sorted(sources()) == KEPT


@pytest.mark.parametrize("folder", KEPT)
def test_every_kept_run_is_one_of_its_configs(folder):
    made = {run.id for config in configs(folder) for run in config.runs}
    assert not sorted(set(runs(folder)["run_id"]) - made)


@pytest.mark.parametrize("folder", KEPT)
def test_a_folder_that_is_no_cut_has_all_runs_of_its_config(folder):
    made = {run.id for config in configs(folder) for run in config.runs}
    assert "cut" in sources()[folder] or set(runs(folder)["run_id"]) == made


@pytest.mark.parametrize("folder", KEPT)
def test_runs_are_judged_by_the_protocol_of_their_config(folder):
    assert set(runs(folder)["protocol"]) == {config.evaluation.protocol for config in configs(folder)}


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*/tables/*--*--*.csv")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_every_kept_comparison_is_one_of_its_configs(path):
    kind, dataset, _ = path.stem.split("--")
    assert any(dataset in getattr(config, COMPARISONS[kind]) for config in configs(path.parts[-3]))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_config_says_how_many_runs_it_has(path):
    head = path.read_text(encoding="utf-8").split("name:")[0]
    config = load(path)
    counts = {"trained runs": sum(METHODS[run.method].trains for run in config.runs), "runs": len(config.runs)}
    for number, what in re.findall(r"([\d,]+) (trained runs|runs)\b", head):
        assert int(number.replace(",", "")) == counts[what]
