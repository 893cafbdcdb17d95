"""The weights that are committed are those that the registries pin."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from dpsapf.evaluation.network import load_feature_network
from dpsapf.experiment.registries import ModelEntry, ProtocolEntry, entry
from dpsapf.public_models.families.stable_diffusion import StableDiffusion
from dpsapf.support.files import sha256

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "dpsapf" / "public_models" / "public-mini"
NETWORK = ROOT / "dpsapf" / "evaluation" / "networks" / "public-mini-features.safetensors"


def test_model_is_the_pinned_one():
    assert sha256(MODEL) == entry(ROOT / "config" / "public_models.yaml", "public-mini", ModelEntry).sha256


def test_feature_network_is_the_pinned_one():
    digest = entry(ROOT / "config" / "protocols.yaml", "demo-v1", ProtocolEntry).feature_sha256
    assert load_feature_network(NETWORK, digest).head.out_features > 80


def test_plain_diffusers_loads_the_model_without_a_dtype():
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype
    (image,) = pipeline("a digit", num_inference_steps=1).images
    assert image.size == (32, 32)


def test_model_is_small_and_holds_no_pickle():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".csv", ".png", ".md"}


def test_model_has_56_candidates_in_14_layers():
    table, parameters = StableDiffusion.candidate_table(MODEL)
    attention = table[table["candidates"] == "attention"]
    assert len(attention) == 56 and attention["layer"].nunique() == 14
    assert parameters == pytest.approx(1.08e6, rel=0.01)  # as the card says, to two digits


def test_card_names_its_data_and_the_digest_of_the_weights():
    card = (MODEL / "README.md").read_text()
    assert sha256(MODEL / "unet" / "diffusion_pytorch_model.safetensors") in card
    assert "It has seen no sensitive dataset of the suite." in card
