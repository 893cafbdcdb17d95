"""measure-fragility: what noise in each candidate matrix breaks. Public: it sees the public model and its own samples.

Noise of standard deviation s goes into B of one matrix' LoRA update (alpha/r) B A, with A as it starts. The mean squared
change of the prediction is how much the denoising loss rises, on average, for a model whose error is unrelated to its
output: it is the Gauss-Newton form of the curvature, and so never negative, unlike a difference of two losses. Divided by
the energy s^2 p of noise of that size in all p parameters of the adapter it is h. It is direct, one forward pass a matrix and
draw, and s is of the size that training reaches.
"""

import logging
import math
import typing

import numpy as np
import pandas as pd
import torch

from dpsapf.experiment.columns import COLUMNS, FRAGILITY, FRAGILITY_ERROR, FRAGILITY_SHRUNK, LORA_PARAMETERS, MATRIX, SCALE
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import MeasureFragility, MeasureGradients
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family, Objective
from dpsapf.public_models.latents import Batch, Latents, draw_batch
from dpsapf.saliency.select import candidates
from dpsapf.support.files import atomic
from dpsapf.support.progress import track
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record

if typing.TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LOG = logging.getLogger(__name__)
SAMPLER_STEPS = 25


def measure_fragility(options: MeasureFragility) -> None:
    """Write each candidate's fragility with its standard error, and shrunk."""
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), load_model(read_record(options.model, ModelRecord))
    table = candidates(options.candidate_table, options.candidates)
    denoiser = model.denoiser(options.device).requires_grad_(False)
    embeddings = model.embed(dataset.prompts, options.device)
    own = own_samples(model, model.text_to_image(denoiser, options.device), embeddings, options)
    energies = options.deviation**2 * options.lora_rank * table[LORA_PARAMETERS].to_numpy()
    draws = rises(denoiser, model.objective(), own, table[MATRIX].tolist(), options) / energies
    mean, error = draws.mean(0), draws.std(0, ddof=1) / math.sqrt(len(draws))
    sizes = [denoiser.get_submodule(name).weight[0].numel() for name in table[MATRIX]]
    columns = {FRAGILITY: mean, FRAGILITY_ERROR: error, FRAGILITY_SHRUNK: shrunk(mean, error), COLUMNS: sizes}
    columns[SCALE] = options.lora_alpha / options.lora_rank
    LOG.info("fragility from %.3g to %.3g, relative error %.2g", mean.min(), mean.max(), (error / mean).mean())
    with atomic(options.out) as temporary:
        pd.DataFrame({MATRIX: table[MATRIX], **columns}).to_csv(temporary, index=False)


def own_samples(
    model: Family, pipeline: "DiffusionPipeline", embeddings: torch.Tensor, options: MeasureFragility | MeasureGradients
) -> Latents:
    """Sample latents from the public model, without guidance, prompts in turn.

    Args:
        model: the public model.
        pipeline: its own, which samples at its resolution.
        embeddings: [K, L, D], of the prompts.
        options: samples, micro-batch, device and seed.
    """
    labels = torch.arange(options.samples) % len(embeddings)
    drawn = []
    for rows in torch.arange(options.samples).split(options.micro_batch):
        latents = model.generate(
            pipeline,
            embeddings[labels[rows]],
            guidance_scale=1.0,
            steps=SAMPLER_STEPS,
            generators=[torch_generator(options.seed, "fragility", "sample", int(row)) for row in rows],
            output_type="latent",
        )
        drawn.append(latents.cpu())
    mean = torch.cat(drawn).clone()
    return Latents(mean, torch.zeros_like(mean), labels, embeddings)


@torch.no_grad()
def rises(
    denoiser: torch.nn.Module, objective: Objective, own: Latents, names: list[str], options: MeasureFragility
) -> np.ndarray:
    """Measure the mean squared change of the prediction under noise in one matrix at a time, float64 [draws, M]."""
    found = np.empty((options.draws, len(names)))
    for draw in track(range(options.draws), "fragility", "draw"):
        generator = torch_generator(options.seed, "fragility", "pairs", draw)
        batch = draw_batch(own, torch.arange(len(own)), 1, objective.timesteps, generator)
        base = predictions(denoiser, objective, batch, options)
        for place, name in enumerate(names):
            weight, update = denoiser.get_submodule(name).weight, torch_generator(options.seed, "fragility", name, draw)
            kept = weight.clone()
            weight += lora_noise(weight, options, update)
            found[draw, place] = float((predictions(denoiser, objective, batch, options) - base).double().square().mean())
            weight.copy_(kept)
    return found


def lora_noise(weight: torch.Tensor, options: MeasureFragility, generator: torch.Generator) -> torch.Tensor:
    """Draw a LoRA update (alpha/r) B A with peft's start of A, uniform of variance 1/(3 columns), and B of noise."""
    columns = weight[0].numel()
    a = (2 * torch.rand(options.lora_rank, columns, generator=generator) - 1) / math.sqrt(columns)
    b = options.deviation * torch.randn(len(weight), options.lora_rank, generator=generator)
    return (options.lora_alpha / options.lora_rank * (b @ a)).reshape(weight.shape).to(weight)


def predictions(denoiser: torch.nn.Module, objective: Objective, batch: Batch, options: MeasureFragility) -> torch.Tensor:
    """Return the denoiser's output for every row, [R, C, h, w] on the CPU."""
    found = []
    for start in range(0, len(batch), options.micro_batch):
        rows = batch.rows(start, start + options.micro_batch, options.device)
        found.append(objective.predictions(denoiser, rows).cpu())
    return torch.cat(found)


def shrunk(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Move each value, in log, towards their mean by the share of its spread that is error (empirical Bayes, normal).

    Args:
        mean: positive values [M].
        error: their standard errors [M].

    Returns:
        exp(c + t^2/(t^2 + e^2) (log h - c)), with e = error/h, c the mean log, and t^2 the logs' variance beyond the mean e^2.
    """
    logs, errors = np.log(np.maximum(mean, np.finfo(float).tiny)), error / np.maximum(mean, np.finfo(float).tiny)
    centre = logs.mean()
    spread = max(0.0, logs.var(ddof=1) - (errors**2).mean()) if len(logs) > 1 else 0.0
    with np.errstate(invalid="ignore"):
        share = np.where(spread + errors**2 > 0, spread / (spread + errors**2), 1.0)
    return np.exp(centre + share * (logs - centre))
