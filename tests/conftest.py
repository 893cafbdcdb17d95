"""Shared builders: records and options of a tiny run."""

import os
import tempfile

import numpy as np
import pytest
import torch

from dpsapf.experiment.records import DatasetRecord, ModelRecord, Plan, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.pretraining.architecture import build, save_pipeline
from dpsapf.privacy import accounting, spends
from dpsapf.support.checked import replace
from tests.tiny_models import save_z_image

# what is spent in tests stays out of the user's record of spends, also where a module starts processes before its tests
SPENDS = tempfile.TemporaryDirectory(prefix="dpsapf-spends-")
os.environ["DPSAPF_SPENDS"] = SPENDS.name
PROMPTS = ["a handwritten digit 7", "a red circle on a blue background", "a photo of a cat", ""]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def spends_folder(tmp_path_factory, monkeypatch):
    """Folder of the test's own record of spends."""
    folder = tmp_path_factory.mktemp("spends") / "of" / "the" / "owner"
    monkeypatch.setenv("DPSAPF_SPENDS", str(folder))
    return folder


@pytest.fixture
def new_owner(tmp_path_factory, monkeypatch, dataset_record):
    """Start a record of spends that knows a dataset, and nothing that was released of it; maybe a run is planned."""

    def start(dataset_id="d" * 64, name="mnist5k", run=None):
        monkeypatch.setenv("DPSAPF_SPENDS", str(tmp_path_factory.mktemp("owner")))
        image = np.frombuffer(f"{dataset_id:0<{192}}"[:192].encode(), np.uint8).reshape(1, 8, 8, 3)
        spends.know(replace(dataset_record, id=dataset_id, name=name), lambda: [image])
        if run:
            with spends.planning(run, dataset_id, "image", {}):
                pass

    return start


@pytest.fixture(scope="session")
def calibrations():
    """Noise multipliers that were found in this session."""
    return {}


@pytest.fixture(autouse=True)
def calibrated_once(monkeypatch, calibrations):
    """Plans of the same releases look for their noise once; `accounting.calibrate` itself is left alone."""

    def known(target, delta, build):
        key = (target, delta, tuple(build(7.0)), accounting.CARRIED)
        if key not in calibrations:
            calibrations[key] = accounting.calibrate(target, delta, build)
        return calibrations[key]

    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", known)


@pytest.fixture
def run():
    return RunSpec(
        dataset="mnist5k",
        public_model="public-mini",
        method="dp-sapf",
        level="matrix",
        ratio=0.3,
        score="energy",
        mechanism="gaussian",
        sigma_s=10.0,
        rule="top",
        candidates="attention",
        adapter="lora",
        epsilon=10.0,
    )


@pytest.fixture
def dataset_record():
    return DatasetRecord(
        name="mnist5k",
        loader="x",
        source="x",
        licence="x",
        procedural=False,
        classes=("a", "b"),
        prompts=("a", "b"),
        resolution=32,
        channels=1,
        train=3500,
        validation=500,
        test=1000,
        train_per_class=(1750, 1750),
        id="d" * 64,
        provenance={},
    )


@pytest.fixture
def releases():
    return (
        Release(name="saliency", noise_multiplier=10.0, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="seed"),
        Release(name="dp-sgd", noise_multiplier=0.7, sensitivity=1.0, sampling_rate=0.1, steps=4, noise="seed"),
    )


@pytest.fixture
def plan(run, releases):
    return Plan(
        run=run,
        population=3500,
        target_epsilon=10.0,
        delta=3.5e-5,
        relation="zero out one image",
        unit="image",
        public=("N",),
        clipping="automatic",
        clipping_norm=1.0,
        noise="seed",
        releases=releases,
        planned_epsilon={"pld": 9.9},
        selection_epsilon=0.4,
        dp_sgd_noise_alone=0.69,
        dataset_id="d" * 64,
        provenance={},
    )


@pytest.fixture(scope="session")
def mini(tmp_path_factory):
    """Folder of an untrained public-mini; tests must not change it."""
    folder = tmp_path_factory.mktemp("public-mini") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_pipeline(build(folder, PROMPTS), folder)
    return folder


@pytest.fixture(scope="session")
def z_image(tmp_path_factory):
    """Folder of a tiny untrained Z-Image; tests must not change it."""
    folder = tmp_path_factory.mktemp("z-image")
    save_z_image(folder / "model", folder)
    return folder / "model"


@pytest.fixture
def model_record(mini):
    return ModelRecord(
        name="public-mini",
        path=str(mini),
        vae_path=str(mini / "vae"),
        resolution=32,
        licence="MIT",
        sha256=None,
        denoiser_parameters=1,
        family="stable-diffusion",
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
        id="d" * 64,
        provenance={},
    )
