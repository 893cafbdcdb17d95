"""The whole of fine-tuning and of scoring against an independent slow computation from plan and data.

The oracle shares no code with the trainer but the model, its loss and the names of the seeds: batches from Opacus'
sampler, one autograd call an image, clipping and noise written out. Whatever `train_step` hands on wrongly (clipping,
noise, its source, the rate, the step) changes the weights.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from safetensors.torch import load_file

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, SCORE, SELECTED
from dpsapf.experiment.stages import Finetune, ScoreSaliency
from dpsapf.finetune import train
from dpsapf.finetune.adapters import trainable
from dpsapf.privacy.clipping import MARGIN
from dpsapf.privacy.noise import Draws
from dpsapf.saliency import score
from dpsapf.support.checked import replace
from dpsapf.support.randomness import child_seed
from dpsapf.support.records import write_record
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_record, tiny_scheduler, tiny_unet, write_latents

# every image is clipped, and noise and signal are about as large: AdamW hardly notices the scale of either alone
IMAGES, RATE, STEPS, SIGMA, BOUND, LEARNING_RATE, DECAY = 12, 0.5, 3, 0.3, 0.02, 1e-2, 0.5


def generator(*names, seed=0):
    return torch.Generator().manual_seed(child_seed(seed, *names))


@pytest.fixture
def files(tmp_path, plan, monkeypatch):
    """Everything that both stages read, on the tiny UNet."""
    for stage in (train, score):
        monkeypatch.setattr(stage, "load_model", TinyModel)
    write_record(tmp_path / "model.json", tiny_record())
    names = candidates(tiny_unet())
    table = pd.DataFrame({MATRIX: names, LAYER: names, BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(tmp_path / "candidates.csv", index=False)
    table.assign(**{SELECTED: table.index < 4}).to_csv(tmp_path / "selection.csv", index=False)
    write_latents(tmp_path, tiny_latents(IMAGES), plan.dataset_id)
    return tmp_path


def finetune(files, plan, noise="seed", clipping="flat", out="out"):
    release = replace(plan.releases[1], sampling_rate=RATE, steps=STEPS, noise_multiplier=SIGMA, sensitivity=BOUND, noise=noise)
    changed = replace(
        plan, population=IMAGES, noise=noise, clipping=clipping, clipping_norm=BOUND, releases=(plan.releases[0], release)
    )
    write_record(files / "plan.json", changed)
    outputs = {"weights": "w.safetensors", "training_log": "l.csv", "spend": "s.json", "private": "p.json"}
    options = Finetune(
        **{name: files / f"{name}.{end}" for name, end in (("plan", "json"), ("model", "json"), ("selection", "csv"))},
        latents=files / "latents.safetensors",
        prompts=files / "prompts.safetensors",
        **{name: files / out / file for name, file in outputs.items()},
        learning_rate_lora=LEARNING_RATE,
        learning_rate_full=1e-3,
        lora_rank=2,
        lora_alpha=4.0,
        ema_decay=DECAY,
        micro_batch=4,
    )
    train.finetune(options)
    return load_file(options.weights)


def poisson(step):
    sampler = UniformWithReplacementSampler(
        num_samples=IMAGES, sample_rate=RATE, generator=generator("finetune", step, "batch"), steps=1
    )
    return torch.tensor(next(iter(sampler)))


def drawn(batch, draws):
    """Noisy latents, noise, timesteps and prompts of a batch, one of each an image."""
    latents = tiny_latents(IMAGES)
    shape = latents.mean[batch].shape
    steps = torch.randint(1000, (len(batch),), generator=draws)
    high, low = torch.randint(2**63 - 1, (2,), generator=draws).tolist()
    rows = [np.random.Philox(key=high * 2**64 + low, counter=[0, 0, 0, row]) for row in range(len(batch))]
    normal = [np.random.Generator(row).standard_normal((2, *shape[1:]), np.float32) for row in rows]
    posterior, noise = torch.from_numpy(np.stack(normal)).transpose(0, 1)
    clean = latents.mean[batch] + latents.std[batch] * posterior
    noisy = tiny_scheduler().add_noise(clean, noise, steps)
    return noisy, noise, steps, latents.prompt_embeddings[latents.labels[batch]]


def image_gradients(unet, values, rows):
    """One autograd call an image."""
    for noisy, noise, step, prompt in zip(*rows, strict=True):
        predicted = unet(noisy[None], step[None], prompt[None]).sample
        yield [value.double() for value in torch.autograd.grad((predicted - noise).square().mean(), values)]


def joint_norm(gradients):
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def factor(norm, clipping):
    bound = (1 - MARGIN) * BOUND
    return min(1.0, bound / norm) if clipping == "flat" else bound / (norm + 0.01)


def oracle(files, plan, clipping):
    """DP-SGD as in the paper, image by image; the update is torch's AdamW, the average an exponential one."""
    unet = tiny_unet()
    parameters = trainable(unet, plan.run, pd.read_csv(files / "selection.csv"), 2, 4.0)
    values = list(parameters.values())
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(values, lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(STEPS):
        total = [torch.zeros_like(value, dtype=torch.float64) for value in values]
        for gradients in image_gradients(unet, values, drawn(poisson(step), generator("finetune", "pairs", step))):
            weight = factor(joint_norm(gradients), clipping)
            total = [before + weight * gradient for before, gradient in zip(total, gradients, strict=True)]
        noise = generator("finetune", "privacy noise", step)
        for value, before in zip(values, total, strict=True):
            noisy = before + SIGMA * BOUND * torch.randn(value.shape, generator=noise)
            value.grad = (noisy / (RATE * IMAGES)).float()
        optimizer.step()
        keep = min(DECAY, (2 + step) / (11 + step))
        for name, value in parameters.items():
            average[name] = keep * average[name] + (1 - keep) * value.detach()
    return average


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_finetune_is_dp_sgd_as_it_is_written_down(files, plan, clipping):
    weights, expected = finetune(files, plan, clipping=clipping), oracle(files, plan, clipping)
    assert set(weights) == set(expected)
    for name, value in expected.items():
        # fp32 passes give 4e-8; a tenth less noise gives 3e-4, no clipping 4e-4
        assert (weights[name] - value).abs().mean() < 1e-6, name


def seeded_batches_and_pairs(monkeypatch, *stages):
    """Hold batches and pairs fixed, so that only the noise of system mode is left to differ."""

    class SeededSecrets(Draws):
        def secret(self, *names):
            return Draws("seed", self.seed, self.stage).secret(*names)

    for stage in stages:
        monkeypatch.setattr(stage, "Draws", SeededSecrets)


def test_in_system_mode_the_noise_alone_makes_two_runs_differ(files, plan, monkeypatch, new_owner):
    seeded_batches_and_pairs(monkeypatch, train)
    first, second = (new_owner(run=plan.run) or finetune(files, plan, noise="system", out=out) for out in ("a", "b"))
    assert all(not torch.equal(first[name], second[name]) for name in first)
    seeded = finetune(files, plan, out="c")
    assert all(not torch.equal(first[name], seeded[name]) for name in first)


def score_saliency(files, dataset_record, noise="seed", out="scores"):
    write_record(files / "dataset.json", dataset_record)
    options = ScoreSaliency(
        dataset=files / "dataset.json",
        model=files / "model.json",
        candidate_table=files / "candidates.csv",
        latents=files / "latents.safetensors",
        prompts=files / "prompts.safetensors",
        score="energy",
        mechanism="gaussian",
        sigma_s=SIGMA,
        clipping_norm=BOUND,
        expected_batch_size=8,
        noise=noise,
        micro_batch=5,
        scores=files / out / "scores.csv",
        spend=files / out / "spend.json",
        private=files / out / "private.json",
    )
    score.score_saliency(options)
    return torch.tensor(pd.read_csv(options.scores)[SCORE].to_numpy())


def scores_oracle():
    """Squared norms of the clipped gradient of each image, matrix by matrix, summed; noise of sigma_s C^2."""
    unet = tiny_unet()
    weights = [unet.get_submodule(name).weight for name in candidates(unet)]
    sampler = UniformWithReplacementSampler(
        num_samples=IMAGES, sample_rate=8 / IMAGES, generator=generator("saliency", "batch"), steps=1
    )
    rows = drawn(torch.tensor(next(iter(sampler))), generator("saliency", "pairs"))
    total = torch.zeros(len(weights), dtype=torch.float64)
    for gradients in image_gradients(unet, weights, rows):
        total += torch.stack([gradient.square().sum() for gradient in gradients]) * factor(joint_norm(gradients), "flat") ** 2
    noise = torch.randn(len(weights), generator=generator("saliency", "privacy noise"), dtype=torch.float64)
    return total + SIGMA * BOUND**2 * noise


def test_score_saliency_is_the_noisy_energy_as_it_is_written_down(files, dataset_record):
    torch.testing.assert_close(score_saliency(files, dataset_record), scores_oracle(), rtol=1e-4, atol=1e-7)  # fp32 passes


def test_in_system_mode_the_noise_alone_makes_two_score_releases_differ(files, dataset_record, monkeypatch, new_owner):
    seeded_batches_and_pairs(monkeypatch, score)
    first, second = (new_owner() or score_saliency(files, dataset_record, "system", out) for out in ("a", "b"))
    assert (first != second).all() and (first != scores_oracle()).all()
