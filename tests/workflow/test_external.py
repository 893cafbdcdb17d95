"""A real small run with another group's images in it, cut in two, joined and checked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dpsapf.cli.main import main
from dpsapf.experiment.registries import load_yaml

ROOT = Path(__file__).parents[2]
LORA, THEIRS = "digits--public-mini--dp-lora--eps10--seed0", "digits--public-mini--external-their-method--eps10--seed0"
TABLES = ("runs.csv", "summary.csv", "selections.csv")


def workflow(folder, config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*command, "--configfile", str(folder / "config.yaml")]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def half(whole, folder, keep):
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "tables")
    for run in list((folder / "runs").iterdir()):
        if not keep(run.name):
            shutil.rmtree(run)
    return folder


@pytest.mark.slow
def test_a_run_with_another_groups_images_joined_from_halves_is_the_whole(tmp_path):
    config = load_yaml(ROOT / "config" / "ci.yaml")
    config |= {f"{name}_file": str(ROOT / "config" / f"{name}.yaml") for name in ("datasets", "public_models", "protocols")}
    config["studies"]["main"]["method"] = ["dp-sapf", "dp-lora"]
    workflow(tmp_path, config)
    whole = tmp_path / "results" / "ci"
    with np.load(whole / "runs" / LORA / "samples.npz") as samples:  # whose scores are known
        images = (samples["images"][..., :1].transpose(0, 3, 1, 2) / np.float32(255), samples["labels"])
        np.savez(tmp_path / "gen.npz", x=images[0], y=images[1])
    theirs = {"dataset": "digits", "images": str(tmp_path / "gen.npz"), "epsilon": 10}
    config["external"] = {"their-method": {"label": "Their method (2025)", "runs": [theirs]}}
    workflow(tmp_path, config)
    ours, others = (load_yaml(whole / "runs" / name / "metrics.json") for name in (LORA, THEIRS))
    assert {key: ours[key] for key in ("accuracy", "fid", "kid", "recall")} == {
        key: others[key] for key in ("accuracy", "fid", "kid", "recall")
    }
    assert "Their method (2025), ε claimed, not audited" in (whole / "figures" / "main_table.md").read_text()
    assert main(["check", "--results", str(whole), "--configfile", str(tmp_path / "config.yaml")]) == 0
    halves = [
        half(whole, tmp_path / "one", lambda name: "dp-sapf" in name),
        half(whole, tmp_path / "two", lambda name: "dp-sapf" not in name),
    ]
    assert main(["merge", "--results", *map(str, halves), "--out", str(tmp_path / "joined")]) == 0
    for table in TABLES:
        one, other = ((folder / "tables" / table).read_bytes().splitlines() for folder in (tmp_path / "joined", whole))
        assert one[0] == other[0] and sorted(one) == sorted(other)
    assert main(["check", "--results", str(tmp_path / "joined")]) == 0
