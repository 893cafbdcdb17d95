from pathlib import Path

import pandas as pd
import pytest
import yaml

from dpsapf.bench.estimate import estimate, measured, table
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.settings import parse_config
from dpsapf.experiment.stages import Estimate
from dpsapf.support.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def config(name):
    return parse_config(load_yaml(f"config/{name}.yaml"))


def test_studies_sum_to_all(tmp_path):
    estimate(Estimate(configfile=Path("config/paper.yaml"), price=2.0, out=tmp_path / "cost.csv"))
    frame = pd.read_csv(tmp_path / "cost.csv").set_index("study")
    studies = frame.drop("all")
    for column in ("runs", "jobs", "submissions"):
        assert studies[column].sum() == frame.loc["all", column]
    for column in ("GPU-hours", "money", "disk (GB)"):
        assert studies[column].sum() == pytest.approx(frame.loc["all", column], abs=len(studies))  # rounded
    assert frame.loc["all", "money"] == pytest.approx(2 * frame.loc["all", "GPU-hours"], rel=1e-3)
    assert frame.loc["all", "runs"] == len(config("paper").runs) and frame.loc["all", "submissions"] <= 900


def test_a_known_study_costs_what_its_operations_say():
    """Each trained run: 4,096 x 1,000 passes, and 10,000 images of 25 guided steps; scores over all images, once each."""
    frame = table(config("paper-lite"), 100.0, None, {}).set_index("study")
    drawn = 10000 * (50 * 0.180106 + 0.622187)
    learned = 200 * 0.9 * 10000 * (0.00148588 + 0.0314601 + 0.0323235)  # classifiers on all but the held-out tenth
    bf16, fp32 = 4096 * 1000 * 0.364861 + drawn, learned + 10000 * 0.0114264
    assert frame.loc["layers", "TFLOP"] == pytest.approx(bf16 + fp32, rel=1e-5)
    assert frame.loc["layers", "GPU-hours"] == pytest.approx((bf16 + fp32 * 180 / 27) / 100 / 3600, rel=0.02)
    assert frame.loc["all", "GPU-hours"] * 100 / 396 <= 40


def test_the_table_is_explained(caplog):
    caplog.set_level("INFO")
    for name, words in (("paper", "in fp32, at 27 TFLOP/s"), ("paper-lite", "in bf16, at 180 TFLOP/s")):
        caplog.clear()
        estimate(Estimate(configfile=Path(f"config/{name}.yaml")))
        assert words in caplog.text and ("classifiers and feature networks, which compute in fp32" in caplog.text) == (
            "lite" in name
        )
        for part in ("first row: also what studies share", "submissions: what a cluster gets of them", "left out: text encoders"):
            assert part in caplog.text


def test_what_a_try_cannot_do_is_told(caplog, tmp_path):
    """12 tries: twice the 133 hours of an evolution on celeba, in tries of a day without the start."""
    caplog.set_level("INFO")
    data = load_yaml("config/paper.yaml")
    data["resources"]["runtime_min"] = 1440
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(data))
    estimate(Estimate(configfile=tmp_path / "short.yaml"))
    assert "evolve: 48 jobs take 73 to 133 hours by estimate" in caplog.text
    assert "12 tries are needed, 3 are made. Set runtime_min to 5326 or more" in caplog.text
    data["resources"]["runtime_min"] = 5326
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(data))
    caplog.clear()
    estimate(Estimate(configfile=tmp_path / "short.yaml"))
    assert "evolve: 48 jobs" in caplog.text and "tries are needed" not in caplog.text


def test_measured_times_take_the_place_of_operations(tmp_path):
    for run, seconds in (("a", 3000.0), ("b", 5000.0), ("c", 3600.0)):
        folder = tmp_path / "benchmarks" / "finetune"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{run}.tsv").write_text(f"s\th:m:s\n{seconds}\t0:00:00\n")
    assert measured(tmp_path) == {"finetune": 3600.0}
    plain, known = (table(config("paper-lite"), 396.0, None, found).iloc[-1]["GPU-hours"] for found in ({}, measured(tmp_path)))
    trained = sum(run.method != "no-finetune" for run in config("paper-lite").runs)
    assert known - plain == pytest.approx(trained * (1 - 4096 * 1000 * 0.364861 / 396 / 3600), abs=0.2)


def test_without_a_speed_it_asks_for_one():
    with pytest.raises(UserError, match="--tflops = None: say what one GPU does"):
        estimate(Estimate(configfile=Path("config/config.yaml")))


def test_jobs_of_unknown_size_are_counted_and_not_guessed():
    frame = table(config("config"), 1.0, None, {})
    assert frame.iloc[-1]["jobs of unknown size"] > 0
