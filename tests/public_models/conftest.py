"""An untrained public-mini, built once, and the records of a model and a dataset."""

import pytest
import torch

from dpsapf.formats import DatasetRecord, ModelRecord
from dpsapf.public_models.architecture import build, save_pipeline

PROMPTS = ["a handwritten digit 7", "a red circle on a blue background", "a photo of a cat", ""]


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """Folder of an untrained public-mini; tests must not change it."""
    folder = tmp_path_factory.mktemp("public-mini") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_pipeline(build(folder, PROMPTS), folder)
    return folder


@pytest.fixture
def model_record(mini):
    return ModelRecord(
        name="public-mini",
        path=str(mini),
        vae_path=str(mini / "vae"),
        resolution=32,
        licence="MIT",
        sha256=None,
        unet_parameters=1,
        candidates=56,
        provenance={},
    )


@pytest.fixture
def two_digits():
    return DatasetRecord(
        name="two",
        loader="x",
        source="x",
        licence="x",
        procedural=False,
        classes=("1", "7"),
        prompts=("a handwritten digit 1", "a handwritten digit 7"),
        resolution=28,
        channels=1,
        train=5,
        validation=0,
        test=0,
        train_per_class=(3, 2),
        sha256="d" * 64,
        provenance={},
    )
