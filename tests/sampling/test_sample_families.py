"""A model of each family through all stages of a run, from images to samples."""

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from dpsapf.experiment.columns import CANDIDATES, SELECTED
from dpsapf.experiment.records import Ledger
from dpsapf.experiment.registries import ModelEntry
from dpsapf.experiment.stages import (
    AuditPrivacy,
    EmbedPrompts,
    EncodeDataset,
    Finetune,
    MeasureFragility,
    PlanPrivacy,
    PreparePublicModel,
    Sample,
    ScoreSaliency,
    SelectMatrices,
)
from dpsapf.finetune.train import finetune
from dpsapf.privacy.audit import audit_privacy
from dpsapf.public_models.encode import embed_prompts, encode_dataset
from dpsapf.public_models.prepare import prepare_public_model
from dpsapf.saliency.fragility import measure_fragility
from dpsapf.saliency.plan import plan_privacy
from dpsapf.saliency.score import score_saliency
from dpsapf.saliency.select import select_matrices
from dpsapf.sampling.sample import sample
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record, write_record
from tests.prepared_dataset import write_dataset

IMAGES = 12


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mini", "z_image"])
def test_a_run_of_each_family(family, request, tmp_path, two_digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = ModelEntry(path=str(request.getfixturevalue(family)), resolution=32, licence="MIT")
    (tmp_path / "models.yaml").write_text(f"tiny: {as_json(entry)}".replace("None", "null").replace("'", '"'))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, 28, 28, 3), dtype=np.uint8)
    archive = write_dataset(tmp_path / "dataset.safetensors", {"train": (images, np.arange(IMAGES) % 2)}, None)
    write_record(tmp_path / "dataset.json", replace(two_digits, train=IMAGES, train_per_class=(6, 6), id=sha256(archive)))
    prepare_public_model(PreparePublicModel(name="tiny", registry="models.yaml", record="model.json", candidates="table.csv"))
    files = {"model": "model.json", "dataset": "dataset.json"}
    encode_dataset(EncodeDataset(archive="dataset.safetensors", out="latents.safetensors", **files))
    embed_prompts(EmbedPrompts(out="prompts.safetensors", **files))
    run = {"public_model": "tiny", "method": "dp-sapf", "level": "matrix", "ratio": 0.3, "sigma_s": 10.0, "epsilon": 10.0}
    steps = {"steps": 2, "expected_batch_size": 6, "delta": 0.01}
    plan_privacy(PlanPrivacy(dataset="dataset.json", candidate_table="table.csv", out="plan.json", **run, **steps))
    read = {"latents": "latents.safetensors", "prompts": "prompts.safetensors"}
    scored = {"mechanism": "gaussian", "sigma_s": 10.0, "noise": "seed", "candidate_table": "table.csv", "delta": 0.01}
    written = {"scores": "scores.csv", "spend": "spend0.json", "private": "private0.json"}
    score_saliency(ScoreSaliency(**files, **read, **scored, **written))
    chosen = {"plan": "plan.json", "candidate_table": "table.csv", "scores": "scores.csv"}
    select_matrices(SelectMatrices(out="selection.csv", record="selection.json", **chosen))
    written = {"weights": "weights.safetensors", "training_log": "log.csv", "spend": "spend1.json", "private": "private1.json"}
    rates = {"learning_rate_lora": 0.01, "learning_rate_full": 0.01, "gradient_checkpointing": True}
    finetune(Finetune(plan="plan.json", model="model.json", selection="selection.csv", **read, **written, **rates))
    audited = {"spends": ("spend0.json", "spend1.json"), "privates": ("private0.json", "private1.json")}
    made = {"scores": "scores.csv", "selection": "selection.csv", "selection_record": "selection.json"}
    made |= {"candidate_table": "table.csv", "model": "model.json"}
    audit_privacy(AuditPrivacy(plan="plan.json", weights="weights.safetensors", out="ledger.json", **audited, **made))
    drawing = {"count": 2, "steps": 2, "guidance_scale": 2.0, "ledger": "ledger.json", "prompts": "prompts.safetensors"}
    trained = {"selection": "selection.csv", "weights": "weights.safetensors"}
    outputs = {"archive": "samples.npz", "contact_sheet": "sheet.png", "timing": "timing.json"}
    sample(Sample(**files, **drawing, **trained, **outputs))

    weights, selection = load_file("weights.safetensors"), pd.read_csv("selection.csv")
    attention = (pd.read_csv("table.csv")[CANDIDATES] == "attention").sum()
    assert selection[SELECTED].sum() == round(0.3 * attention) == len(weights) // 2
    assert all(value.abs().max() > 0 for value in weights.values()), "LoRA's B starts at 0 and was trained"
    assert read_record("ledger.json", Ledger).spent_epsilon["pld"] <= 10
    with np.load("samples.npz") as samples:
        assert samples["images"].shape == (2, 28, 28, 3) and samples["images"].std() > 0


def test_what_noise_breaks_in_a_flow_model(z_image, tmp_path, two_digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = ModelEntry(path=str(z_image), resolution=32, licence="MIT")
    (tmp_path / "models.yaml").write_text(f"tiny: {as_json(entry)}".replace("None", "null").replace("'", '"'))
    write_record(tmp_path / "dataset.json", two_digits)
    prepare_public_model(PreparePublicModel(name="tiny", registry="models.yaml", record="model.json", candidates="table.csv"))
    files = {"dataset": "dataset.json", "model": "model.json", "candidate_table": "table.csv", "out": "fragility.csv"}
    measure_fragility(MeasureFragility(samples=2, draws=2, **files))
    assert (pd.read_csv("fragility.csv")["fragility"] > 0).sum() == 16
