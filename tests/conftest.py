"""Shared builders: records and options of a tiny run."""

import pytest
import torch

from dpsapf.formats import DatasetRecord, Plan, Release, Spend
from dpsapf.runs import RunSpec


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
        sha256="d" * 64,
        provenance={},
    )


@pytest.fixture
def releases():
    return (
        Release(name="saliency", noise_multiplier=10.0, sensitivity=1.0, sampling_rate=1.0, steps=1),
        Release(name="dp-sgd", noise_multiplier=0.7, sensitivity=1.0, sampling_rate=0.1, steps=4),
    )


@pytest.fixture
def plan(run, releases):
    return Plan(
        run=run,
        images=3500,
        target_epsilon=10.0,
        delta=3.5e-5,
        relation="add or remove one image",
        unit="one image",
        public=("N",),
        clipping="automatic",
        clipping_norm=1.0,
        noise="seed",
        releases=releases,
        planned_epsilon={"pld": 9.9},
        selection_epsilon=0.4,
        dp_sgd_noise_alone=0.69,
        dataset_sha256="d" * 64,
        provenance={},
    )


@pytest.fixture
def spends(releases):
    return [
        Spend(
            release=release,
            images=3500,
            dataset_sha256="d" * 64,
            realised_batches=(340, 371, 349, 356) if release.steps == 4 else (3500,),
            digest="e" * 64,
            trainable_parameters=0,
            seconds=1.0,
            peak_memory_mb=1.0,
            provenance={},
        )
        for release in releases
    ]
