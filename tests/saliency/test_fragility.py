"""What noise in a matrix breaks: against the loss itself, a known model, and its own error."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dpsapf.experiment.columns import FRAGILITY, FRAGILITY_ERROR, FRAGILITY_SHRUNK, MATRIX
from dpsapf.experiment.stages import MeasureFragility
from dpsapf.public_models.families.stable_diffusion import NoiseObjective, StableDiffusion
from dpsapf.saliency.fragility import lora_noise, measure_fragility, rises, shrunk
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import write_record
from tests.tiny import candidates, tiny_latents, tiny_objective, tiny_unet


def options(tmp_path, **changes):
    files = {"dataset": "dataset.json", "model": "model.json", "candidate_table": "candidates.csv", "out": "fragility.csv"}
    values = {"samples": 12, "draws": 3, "micro_batch": 5, "lora_rank": 2}
    return MeasureFragility(**{name: tmp_path / file for name, file in files.items()}, **(values | changes))


def test_the_model_is_left_as_it_was(tmp_path):
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    found = rises(unet, tiny_objective(), tiny_latents(), candidates(unet), options(tmp_path))
    assert found.shape == (3, len(candidates(unet))) and (found > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    unet, names = tiny_unet(), candidates(tiny_unet())[:3]
    one, all_ = (rises(unet, tiny_objective(), tiny_latents(), names, options(tmp_path, micro_batch=size)) for size in (1, 12))
    np.testing.assert_allclose(one, all_, rtol=1e-3)


def test_small_noise_costs_in_proportion_to_its_energy(tmp_path):
    unet, names = tiny_unet(), candidates(tiny_unet())[:4]
    small, half = (
        rises(unet, tiny_objective(), tiny_latents(), names, options(tmp_path, deviation=size)) for size in (0.02, 0.01)
    )
    np.testing.assert_allclose(small / half, 4.0, rtol=0.05)


class Doubling(torch.nn.Module):
    """Predicts W x for a row x of the latents: noise in W costs E ||D x||^2, whatever the timestep."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)

    def forward(self, latents, timesteps, embeddings, return_dict):
        return (self.layer(latents),)


class Still:
    config = type("Config", (), {"num_train_timesteps": 10})

    @staticmethod
    def add_noise(latents, noise, timesteps):
        return latents


def test_a_linear_models_rise_is_known(tmp_path):
    """E ||B A x||^2 / outputs = r s^2 (alpha/r)^2 E (a x)^2 = r s^2 ||x||^2 / (3 columns), mean over rows."""
    latents = tiny_latents(200)
    found = rises(
        Doubling(),
        NoiseObjective(Still()),
        latents,
        ["layer"],
        options(tmp_path, draws=300, lora_rank=2, lora_alpha=2.0, micro_batch=200),
    )
    rows = latents.mean.double().square().sum(-1).mean()  # the posterior's deviation of 0.01 adds 4e-4
    assert found.mean() == pytest.approx(float(2 * 0.1**2 * rows / (3 * 4)), rel=4 * found.std() / found.mean() / math.sqrt(300))


def test_updates_are_those_of_peft_with_noise_in_b(tmp_path):
    """The start of A is peft's: same spread, same bounds."""
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(r=64, target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(50, 30)))
    start = next(value for name, value in model.named_parameters() if "lora_A" in name).detach().flatten().numpy()
    bound = 1 / math.sqrt(50)
    assert abs(start).max() <= bound and stats.kstest(start, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    weight, generator = torch.zeros(30, 50), torch_generator(0)
    drawn = torch.stack([lora_noise(weight, options(tmp_path, lora_rank=4), generator) for _ in range(400)])
    assert drawn.square().mean().item() == pytest.approx(4 * 0.1**2 * bound**2 / 3, rel=0.1)
    assert torch.linalg.matrix_rank(drawn[0]) == 4


def test_convolutions_are_rows_times_columns(tmp_path):
    assert lora_noise(torch.zeros(6, 3, 3, 3), options(tmp_path), torch_generator(0)).shape == (6, 3, 3, 3)


def test_shrinking_moves_what_is_uncertain_towards_the_mean():
    mean = np.array([1e-3, 1e-1, 1e1, 1e3])
    kept = shrunk(mean, 1e-6 * mean)
    np.testing.assert_allclose(kept, mean, rtol=1e-6)
    noisy = shrunk(mean, np.array([1e-6, 1e-4, 1e-2, 5e3]))
    assert 1.0 < noisy[3] < mean[3] and noisy[:3] == pytest.approx(mean[:3], rel=1e-4)
    equal = shrunk(np.array([0.9, 1.0, 1.1]), np.array([0.5, 0.5, 0.5]))
    assert np.ptp(equal) == pytest.approx(0, abs=1e-12), "no more spread than error: one value"
    assert (shrunk(np.array([0.0, 1.0]), np.array([0.0, 0.1])) > 0).all()


def test_shrinking_brings_estimates_nearer_to_the_truth():
    generator = np.random.default_rng(0)
    truth = np.exp(generator.normal(0, 1, 500))
    estimate = truth * np.exp(generator.normal(0, 0.8, 500))
    error = 0.8 * estimate
    before, after = (np.square(np.log(values / truth)).mean() for values in (estimate, shrunk(estimate, error)))
    assert after < 0.75 * before


def test_the_command_writes_every_candidate(tmp_path, two_digits, model_record):
    write_record(tmp_path / "dataset.json", two_digits)
    write_record(tmp_path / "model.json", model_record)
    table, _ = StableDiffusion.candidate_table(Path(model_record.path))
    table.to_csv(tmp_path / "candidates.csv", index=False)
    measure_fragility(options(tmp_path, samples=2, draws=2))
    written = pd.read_csv(tmp_path / "fragility.csv")
    assert len(written) == 56 and set(written[MATRIX]) <= set(table[MATRIX])
    assert (written[[FRAGILITY, FRAGILITY_ERROR, FRAGILITY_SHRUNK]] > 0).all(axis=None)
