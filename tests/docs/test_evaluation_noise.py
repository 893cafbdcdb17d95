"""The script that measures the noise of evaluation: its subsets and its summary."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("docs_evaluation_noise", ROOT / "docs" / "evaluation_noise.py")
noise = importlib.util.module_from_spec(spec)
spec.loader.exec_module(noise)


def test_the_first_images_are_as_balanced_as_sampling_draws_them():
    labels = np.sort(np.arange(20) % 3)
    images, kept = noise.first(np.arange(20), labels, 8)
    assert kept.tolist() == np.sort(np.arange(8) % 3).tolist()
    assert images.tolist() == [0, 1, 2, 7, 8, 9, 14, 15]  # the first of each class, in their order


def test_more_images_than_there_are_leaves_all():
    images, labels = noise.first(np.arange(4), np.array([0, 0, 1, 1]), 9)
    assert images.tolist() == [0, 1, 2, 3] and len(labels) == 4


def test_the_summary_is_over_seeds():
    setting = {"dataset": "d", "protocol": "p", "samples": 5, "classifiers": "probe", "repeats": 1, "steps": 0}
    rows = pd.DataFrame([setting | {"accuracy": value, "seconds": 2.0} for value in (10.0, 12.0, 14.0)])
    (row,) = noise.summary(rows).to_dict("records")
    assert row["n"] == 3 and row["mean"] == 12 and row["sd"] == pytest.approx(2) and row["seconds"] == 2


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        noise.main(["--help"])
    assert "--protocols" in capsys.readouterr().out
