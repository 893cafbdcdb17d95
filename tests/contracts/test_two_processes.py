"""Two processes under torchrun give what one gives, from private images to synthetic ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, SCORE, SELECTED
from dpsapf.experiment.records import Ledger, Measured, Plan
from dpsapf.experiment.runs import normalise
from dpsapf.support.checked import replace
from dpsapf.support.records import read_record, write_record
from tests.tiny import candidates, tiny_latents, tiny_record, tiny_unet, write_latents

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("under_torchrun.py")
IMAGES = 12
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def inputs(folder, plan, dataset_record):
    """Inputs of all three stages on the tiny model."""
    release = replace(plan.releases[1], sampling_rate=0.5, steps=4)
    write_record(folder / "plan.json", replace(plan, population=IMAGES, releases=(plan.releases[0], release)))
    write_record(folder / "model.json", tiny_record())
    write_record(folder / "dataset.json", replace(dataset_record, resolution=8))
    names = candidates(tiny_unet())
    table = pd.DataFrame({MATRIX: names, LAYER: names, BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(folder / "candidates.csv", index=False)
    table.assign(**{SELECTED: [index < 3 for index in range(len(names))]}).to_csv(folder / "selection.csv", index=False)
    write_latents(folder, tiny_latents(IMAGES))
    run = normalise(replace(plan.run, method="no-finetune", epsilon=None))
    ledger = {"run": run, "target_epsilon": None, "delta": 1e-5, "relation": "r", "unit": "image", "noise": "seed"}
    ledger |= {"not_for_release": None, "dataset_id": "d" * 64, "prior": (), "digests": {}, "releases": (), "spent_epsilon": {}}
    write_record(folder / "ledger.json", Ledger(**ledger, weights_digest=None, provenance={}))
    return folder


def asked(inputs, out):
    """Name and options of each stage, with outputs in a folder; micro-batches that leave one process without rows at times."""
    made = {"latents": inputs / "latents.safetensors", "prompts": inputs / "prompts.safetensors", "model": inputs / "model.json"}
    kept = {"spend": out / "spend.json", "private": out / "private.json"}
    train = {"plan": inputs / "plan.json", "selection": inputs / "selection.csv", "weights": out / "weights.safetensors"}
    train |= made | kept | {"training_log": out / "log.csv", "learning_rate_lora": 1e-2, "learning_rate_full": 1e-3}
    yield "Finetune", train | {"micro_batch": 5, "lora_rank": 2, "checkpoint_every": 1}
    about = {"dataset": inputs / "dataset.json", "model": made["model"]}
    for name in ("energy", "signal"):
        score = about | made | {"candidate_table": inputs / "candidates.csv", "noise": "seed", "mechanism": "gaussian"}
        score |= {"sigma_s": 1e-9, "score": name, "micro_batch": 5, "clipping_norm": 0.1, "checkpoint_minutes": 1e-9}
        yield "ScoreSaliency", score | {key: out / f"{name}.{key}" for key in ("scores", "spend", "private")}
    sample = about | {"ledger": inputs / "ledger.json", "prompts": made["prompts"], "archive": out / "samples.npz"}
    sample |= {"count": 7, "steps": 2, "guidance_scale": 2.0, "micro_batch": 2}
    yield "Sample", sample | {"contact_sheet": out / "sheet.png", "timing": out / "timing.json"}


def run(inputs, out, *launcher):
    for stage in asked(inputs, out):
        start(inputs, stage, *launcher)


def start(inputs, stage, *launcher):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (inputs / "stage.json").write_text(json.dumps(stage, default=str))
    command = [sys.executable, *launcher, str(SCRIPT), str(inputs / "stage.json")]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture
def both(inputs):
    """Outputs of one process and of two; made once."""
    one, two = inputs / "one", inputs / "two"
    if not two.exists():
        run(inputs, one)
        run(inputs, two, *TWO)
    return one, two


def test_finetune(both):
    one, two = (load_file(folder / "weights.safetensors") for folder in both)
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)  # fp32 sums in another order
    units = [pd.read_csv(folder / "log.csv")["units"].tolist() for folder in both]
    assert units[0] == units[1]


def test_batches_of_a_release_are_the_same_in_both(inputs, new_owner):
    """Noise of the operating system, so each process has draws of its own: the stage refuses if they do not agree."""
    plan = read_record(inputs / "plan.json", Plan)
    new_owner(run=plan.run)
    saliency, trained = (replace(release, noise="system") for release in plan.releases)
    write_record(inputs / "plan.json", replace(plan, noise="system", releases=(saliency, trained)))
    out = inputs / "released"
    stage = next(asked(inputs, out))
    start(inputs, stage, *TWO)
    measured = read_record(out / "private.json", Measured)
    assert pd.read_csv(out / "log.csv")["units"].tolist() == list(measured.batches)


@pytest.mark.parametrize("name", ["energy", "signal"])
def test_score_saliency(both, name):
    one, two = (pd.read_csv(folder / f"{name}.scores")[SCORE].to_numpy() for folder in both)
    np.testing.assert_allclose(two, one, rtol=1e-4)  # fp32 passes in other micro-batches; the noise is far below
    assert one.min() > 0
    one, two = (read_record(folder / f"{name}.private", Measured) for folder in both)
    assert one.batches == two.batches == (IMAGES,) and one.participation == two.participation
    assert one.largest_contribution <= two.largest_contribution * (1 + 1e-4), "two look at more images alone, or at as many"


def test_sample(both):
    one, two = (np.load(folder / "samples.npz") for folder in both)
    assert (one["labels"] == two["labels"]).all() and len(one["images"]) == 7
    assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1  # fp32 sums may round a pixel the other way


def test_the_same_files_are_left(both):
    one, two = ({path.name for path in folder.iterdir()} for folder in both)
    assert one == two and not any("checkpoint" in name or "partial" in name for name in two)
