"""The scripts that time the fidelity metrics and set them beside the libraries."""

import json

import pandas as pd
import pytest

from dpsapf.evaluation import likelihood
from dpsapf.support.arrays import open_arrays
from tests.docs.test_tables import script

scale, agreement = script("metrics_scale"), script("metrics_agreement")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Slices of few features, in files."""
    monkeypatch.setattr(scale, "DIMENSIONS", 8)
    monkeypatch.setattr(scale, "FEW", 100)
    for name in ("EPOCHS", "KEPT"):
        monkeypatch.setattr(likelihood, name, getattr(likelihood, name))  # FLD's row changes them for its process
    for count in (1100, 1300):
        scale.draw(tmp_path, count)
    return tmp_path


@pytest.mark.parametrize("name", scale.METRICS)
def test_every_metric_is_run_and_timed(small, name, capsys):
    scale.measure(small, name, "1100", "1300", 1)
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] >= 0 and found["peak_memory_mb"] > 50


def test_features_are_as_a_networks_are(small):
    rows = open_arrays(small / "1100.safetensors")[0]["features"][:]
    assert rows.shape == (1100, 8) and rows.min() == 0 and 0.2 < (rows > 0).mean() < 0.8
    assert (rows[:100] != rows[1000:]).any()


def test_what_all_take_lies_on_the_line_through_both_slices():
    assert scale.on_the_line([10, 20], [3.0, 5.0], 100) == pytest.approx(21)
    assert scale.on_the_line([10, 20], [5.0, 4.0], 100) == 4  # noise: it does not fall
    assert scale.on_the_line([0, 0], [4.0, 5.0], 0) == 5
    assert scale.on_the_line([10], [4.0], 100) == 40


def test_rows_hold_both_slices_and_all(monkeypatch, tmp_path):
    taken = iter(
        {"seconds": seconds, "wall_seconds": 9.0, "peak_memory_mb": memory} for seconds, memory in ((1.0, 100.0), (4.0, 110.0))
    )
    answer = type("Answer", (), {"stdout": property(lambda self: json.dumps(next(taken)))})
    monkeypatch.setattr(scale.subprocess, "run", lambda *_, **__: answer())
    rows = scale.extrapolated("real radii", scale.measured("real radii", scale.SLICES, tmp_path, 1))
    assert [row["real"] for row in rows] == [8_138, 16_277]
    assert [row["extrapolated_seconds"] for row in rows] == pytest.approx([400, 400], rel=0.01)  # ten times the images, squared
    assert {row["extrapolated_memory_mb"] for row in rows} == {290}  # 10 MB for 8,139 images


def test_metrics_agree_with_the_libraries(monkeypatch, tmp_path):
    for name, value in {"DIMENSIONS": 32, "REAL": 120, "SYNTHETIC": 100, "SHIFTS": (0.0, 0.1)}.items():
        monkeypatch.setattr(agreement, name, value)
    assert agreement.main(["--out", str(tmp_path / "agreement.csv")]) == 0
    table = pd.read_csv(tmp_path / "agreement.csv").set_index(["metric", "library"])
    exact = table.drop([("precision", "torch-fidelity"), ("recall", "torch-fidelity")])  # it counts in fp32
    assert len(table) == 11 and (exact["largest_difference"] < 1e-9).all() and (table["largest_difference"] < 1e-7).all()
    assert (table["largest_value"] > 0).all()


@pytest.mark.parametrize("module", [scale, agreement])
def test_help_says_where_the_table_goes(module, capsys):
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert "--out" in capsys.readouterr().out
