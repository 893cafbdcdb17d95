"""From a folder of private images to a folder that may be published, by Snakemake and the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dpsapf.experiment.records import DatasetRecord, Ledger
from dpsapf.experiment.settings import parse_config
from dpsapf.release.records import PrivacyRecord
from dpsapf.support.records import read_record
from tests.published_run import SEED, leaks, secrets_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder with images, as config/image-folder.yaml wants them, and a small copy of that config."""
    work = tmp_path_factory.mktemp("owner")
    rng = np.random.default_rng(0)
    grid = np.stack(np.mgrid[:32, :32]) - 16
    for name in ("ring", "cross"):
        (work / "images" / name).mkdir(parents=True)
        for number in range(60):
            image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            y, x = grid + rng.integers(-4, 5, (2, 1, 1))
            drawn = abs(np.hypot(y, x) - 8) < 2 if name == "ring" else (abs(y) < 2) | (abs(x) < 2)
            image[drawn] = rng.integers(150, 256, 3)
            Image.fromarray(image).save(work / "images" / name / f"patient-{number}.png")
    entry = {"loader": "image-folder", "source": "images", "licence": "theirs", "classes": ["ring", "cross"], "resolution": 32}
    entry |= {"prompts": ["an image of a ring", "an image of a cross"], "channels": 3, "validation": 10, "test": 10}
    (work / "datasets.yaml").write_text(yaml.safe_dump({"shapes": entry}))
    config = yaml.safe_load((ROOT / "config" / "image-folder.yaml").read_text())
    config |= {"name": "shapes", "datasets_file": "datasets.yaml"}
    config |= {f"{name}_file": str(ROOT / "config" / f"{name}.yaml") for name in ("public_models", "protocols")}
    config["studies"]["main"] |= {"dataset": ["shapes"], "method": ["dp-sapf"], "seed": [SEED]}
    config["privacy"] |= {"steps": 4, "expected_batch_size": 30, "noise": "system"}
    config["sampling"] |= {"count": 8, "steps": 2}
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    return work


@pytest.fixture(scope="module")
def folder(work):
    """The trained, audited and sampled run."""
    config = parse_config(yaml.safe_load((work / "config.yaml").read_text()) | {"datasets_file": str(work / "datasets.yaml")})
    folder = work / "results" / "shapes" / "runs" / config.runs[0].id
    words = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", work, "--cores", "1"]
    words += ["--configfile", work / "config.yaml", "--quiet", "all", "--", folder.relative_to(work) / "samples.npz"]
    subprocess.run(list(map(str, words)), env=ENVIRONMENT, check=True, timeout=1200)
    return folder


def publish(work, folder, out, *extra):
    words = [sys.executable, "-m", "dpsapf", "release", str(folder), "--out", str(out), "--hyperparameters", "paper", *extra]
    return subprocess.run(words, env=ENVIRONMENT, cwd=work, capture_output=True, text=True, check=False, timeout=600)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_owner_publishes_a_run(work, folder, tmp_path):
    done = publish(work, folder.relative_to(work), tmp_path / "out", "--weights")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    assert len(list(out.glob("images/*/*.png"))) == 8
    record, ledger = read_record(out / "privacy.json", PrivacyRecord), read_record(folder / "ledger.json", Ledger)
    assert record.this_release.epsilon == ledger.spent_epsilon and record.together.epsilon["pld"] <= 10
    dataset = read_record(work / "results/shapes/cache/datasets/shapes/dataset.json", DatasetRecord)
    assert record.units == dataset.train
    secrets = secrets_of(work / "results" / "shapes", folder) | {str(work), str(ROOT), "patient-", dataset.id}
    for log in (work / "results" / "shapes" / "logs").rglob("*.log"):
        secrets |= set(re.findall(r"\d+\.\d{4,}", log.read_text()))
    secrets -= {str(value) for value in (record.units, *ledger.spent_epsilon.values(), f"{ledger.delta:.2g}")}
    secrets -= {str(value) for release in ledger.releases for value in (release.noise_multiplier, release.sampling_rate)}
    assert len(secrets) > 40 and leaks(out, secrets) == []

    again = publish(work, folder.name, tmp_path / "again", "--weights", "--results", "results/shapes")
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "again") == files(out), "the same bytes, and nothing counted twice"


def test_what_was_changed_is_refused(work, folder, tmp_path):
    archive = folder / "samples.npz"
    good = archive.read_bytes()
    archive.write_bytes(good[:-1] + b"x")
    refused = publish(work, folder, tmp_path / "out")
    archive.write_bytes(good)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "samples.npz" in refused.stderr and "sample again" in refused.stderr
    assert list(tmp_path.iterdir()) == []
