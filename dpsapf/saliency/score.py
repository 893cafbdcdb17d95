"""score-saliency: release noisy scores of the candidate matrices (DP-SAPF, selection stage)."""

import dataclasses
import logging
import time
import typing

import pandas as pd
import torch

from dpsapf.commands import ScoreSaliency
from dpsapf.formats import MATRIX, SCORE, DatasetRecord, ModelRecord, Release, Spend
from dpsapf.measure import peak_memory_mb
from dpsapf.privacy.clipping import clip_factors
from dpsapf.privacy.noise import add_gaussian_noise
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.progress import track
from dpsapf.public_models.latents import Latents, Pairs, denoising_loss, draw_pairs
from dpsapf.public_models.load import load_scheduler, load_unet
from dpsapf.randomness import torch_generator
from dpsapf.records import atomic, provenance, read_record, sha256, write_record
from dpsapf.saliency.ghost import GhostNorms

if typing.TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

LOG = logging.getLogger(__name__)


def score_saliency(options: ScoreSaliency) -> None:
    """Write the noisy scores (one row per candidate) and the spend record of their release."""
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    dataset = read_record(options.dataset, DatasetRecord)
    model = read_record(options.model, ModelRecord)
    names = pd.read_csv(options.candidates)[MATRIX].tolist()
    latents = Latents.load(options.latents)
    release = _release(options, len(latents))
    batch = poisson_batch(len(latents), release.sampling_rate, torch_generator(options.seed, "saliency", "batch"))
    unet, scheduler = load_unet(model, options.device), load_scheduler(model)
    scores = saliency_scores(unet, scheduler, latents, batch, names, options)
    generator = torch_generator(options.seed, "saliency", "privacy noise")
    noisy = add_gaussian_noise(scores.cpu(), release.noise_multiplier, release.sensitivity, generator)
    with atomic(options.scores) as temporary:
        pd.DataFrame({MATRIX: names, SCORE: noisy.numpy()}).to_csv(temporary, index=False)
    spend = Spend(
        release=release,
        images=len(latents),
        dataset_sha256=dataset.sha256,
        realised_batches=(len(batch),),
        digest=sha256(options.scores),
        trainable_parameters=0,
        seconds=time.monotonic() - start,
        peak_memory_mb=peak_memory_mb(options.device),
        provenance=provenance(),
    )
    write_record(options.spend, spend)


def _release(options: ScoreSaliency, images: int) -> Release:
    rate = min(options.expected_batch_size / images, 1.0)
    bound = options.clipping_norm
    return Release(name="saliency", noise_multiplier=options.sigma_s, sensitivity=bound**2, sampling_rate=rate, steps=1)


def saliency_scores(
    unet: "UNet2DConditionModel",
    scheduler: "DDIMScheduler",
    latents: Latents,
    batch: torch.Tensor,
    names: list[str],
    options: ScoreSaliency,
) -> torch.Tensor:
    """Sum the clipped squared gradient norms of every candidate over a batch; NOT private before noise is added.

    Per image, the gradient over all candidates together is clipped to C_s; its squared norm per matrix is
    that image's non-negative contribution, whose entries sum to at most C_s^2. So adding or removing one
    image changes the result by an L2 norm of at most C_s^2.

    Args:
        unet: the public model; its weights get no gradient.
        scheduler: its noise schedule.
        latents: encoded images.
        batch: images that take part, int64 [B].
        names: candidate matrices, M names of linear layers.
        options: clipping bound, micro-batch and seed.

    Returns:
        Scores, float64 [M].
    """
    unet.requires_grad_(False)
    generator = torch_generator(options.seed, "saliency", "pairs")
    pairs = draw_pairs(latents, batch, 1, scheduler.config.num_train_timesteps, generator)
    scores = torch.zeros(len(names), dtype=torch.float64, device=options.device)
    starts = range(0, len(batch), options.micro_batch)
    with GhostNorms(unet, names) as norms:
        for start in track(starts, "saliency", "batch"):
            rows = _with_gradients(pairs.rows(start, start + options.micro_batch, options.device))
            denoising_loss(unet, scheduler, rows).sum().backward()
            scores += clipped_energy(norms.take(), options.clipping_norm).sum(0)
    return scores


def clipped_energy(squared: torch.Tensor, bound: float) -> torch.Tensor:
    """Clip each image over all candidates jointly: squared norms [B, M] to contributions [B, M], float64.

    Row sums are at most ``bound**2``.
    """
    factors = clip_factors(squared.sum(1), bound, "flat")
    finite = torch.nan_to_num(squared, nan=0.0, posinf=0.0)
    return finite.double() * factors.double().square()[:, None]


def _with_gradients(pairs: Pairs) -> Pairs:
    """Let gradients flow from the inputs, since the frozen weights ask for none."""
    latents, embeddings = pairs.latents.requires_grad_(), pairs.prompt_embeddings.clone().requires_grad_()
    return dataclasses.replace(pairs, latents=latents, prompt_embeddings=embeddings)
