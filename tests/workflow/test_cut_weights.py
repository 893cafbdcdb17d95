"""A real small run whose weights are cut in half after it has finished."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml

ROOT = Path(__file__).parents[2]
LORA = "digits--public-mini--dp-lora--eps10--seed0"


def workflow(folder):
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*command, "--configfile", str(folder / "config.yaml")]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def finished(folder):
    result = workflow(folder)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_weights_cut_in_half_are_named_the_ledger_survives_and_both_remedies_work(tmp_path):
    config = load_yaml(ROOT / "config" / "ci.yaml")
    config |= {f"{name}_file": str(ROOT / "config" / f"{name}.yaml") for name in ("datasets", "public_models", "protocols")}
    config["studies"]["main"]["method"] = ["dp-lora"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    finished(tmp_path)
    run = tmp_path / "results" / "ci" / "runs" / LORA
    weights, ledger = run / "weights.safetensors", run / "ledger.json"
    spent, (kept,) = ledger.read_bytes(), (run / "ledgers").iterdir()
    assert kept.read_bytes() == spent
    shutil.copy2(weights, tmp_path / "copy")

    def cut():
        os.truncate(weights, weights.stat().st_size // 2)
        for _ in range(2):  # the second start tells the same
            result = workflow(tmp_path)
            assert result.returncode != 0 and f"{LORA}/weights.safetensors = " in result.stderr
            assert "changed or cut off after it was written" in result.stderr and "delete it and run" in result.stderr
        assert kept.read_bytes() == spent and not ledger.exists()

    cut()
    shutil.copy2(tmp_path / "copy", weights)  # with its old time: nothing but the ledger is missing
    finished(tmp_path)
    assert ledger.read_bytes() == spent
    cut()
    weights.unlink()
    finished(tmp_path)
    assert ledger.read_bytes() == spent and weights.read_bytes() == (tmp_path / "copy").read_bytes()
