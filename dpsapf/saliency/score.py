"""score-saliency: release noisy scores of the candidate matrices (DP-SAPF, selection stage)."""

import logging
import math
import time
import typing
from collections.abc import Iterator

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, SCORE
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Release, Spend
from dpsapf.experiment.stages import CompareScores, ScoreSaliency
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.privacy.noise import noise_source, secret_generator
from dpsapf.privacy.plan import default_delta
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.public_models.latents import Latents, Pairs, denoising_loss, draw_pairs
from dpsapf.public_models.load import load_scheduler, load_unet
from dpsapf.saliency.plan import saliency_release
from dpsapf.saliency.scores import Bounds, score
from dpsapf.saliency.select import candidates, ranking
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record

if typing.TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

LOG = logging.getLogger(__name__)


def score_saliency(options: ScoreSaliency) -> None:
    """Release the scores (one row per candidate) and write the spend record of their release.

    Raises:
        UserError: propose-test-release refuses, or mechanism and sigma_s do not go together.
    """
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), read_record(options.model, ModelRecord)
    table = candidates(options.candidate_table, options.candidates)
    latents = Latents.load(options.latents)
    units, release = _planned(options, table, len(latents))
    who = secret_generator(options.noise, options.seed, "saliency", "batch")
    batch = poisson_batch(len(latents), release.sampling_rate, who)
    unet, scheduler = load_unet(model, options.device), load_scheduler(model)
    exact = saliency_scores(unet, scheduler, latents, batch, table[MATRIX].tolist(), options)
    source = noise_source(options.noise, torch_generator(options.seed, "saliency", "privacy noise"))
    released = mechanism(release.mechanism).release(exact.cpu().numpy(), units, release, source)
    with atomic(options.scores) as temporary:
        pd.DataFrame({MATRIX: table[MATRIX], SCORE: released}).to_csv(temporary, index=False)
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


def _planned(options: ScoreSaliency, table: pd.DataFrame, images: int) -> tuple[Ranking, Release]:
    if (options.mechanism is None) != (options.sigma_s is None):
        raise UserError("--sigma-s", options.sigma_s, "give it together with --mechanism, or leave out both")
    units = ranking(table, options.level, options.ratio, options.score, bounds(options))
    delta = options.delta or default_delta(images)
    return units, saliency_release(images, options, units, options.mechanism, options.sigma_s, delta)


def bounds(options: ScoreSaliency) -> Bounds:
    """Return what limits an image's contribution; nothing does without a mechanism."""
    return Bounds(clipping_norm=options.clipping_norm if options.mechanism else math.inf, votes=options.votes)


def saliency_scores(
    unet: "UNet2DConditionModel",
    scheduler: "DDIMScheduler",
    latents: Latents,
    batch: torch.Tensor,
    names: list[str],
    options: ScoreSaliency,
) -> torch.Tensor:
    """Sum the images' contributions to every candidate's score over a batch; NOT private before a mechanism releases it.

    Args:
        unet: the public model; its weights get no gradient.
        scheduler: its noise schedule.
        latents: encoded images.
        batch: images that take part, int64 [B].
        names: candidate matrices, M names of linear layers or convolutions.
        options: score, bounds, micro-batch and seed.

    Returns:
        Scores, float64 [M].
    """
    contributions, limits = score(options.score).contributions, bounds(options)
    scores = torch.zeros(len(names), dtype=torch.float64, device=options.device)
    draws = secret_generator(options.noise, options.seed, "saliency", "pairs")
    pairs = draw_pairs(latents, batch, 1, scheduler.config.num_train_timesteps, draws)
    for squared in squared_gradient_norms(unet, scheduler, pairs, names, options):
        scores += contributions(squared, limits).sum(0)
    return scores


def squared_gradient_norms(
    unet: "UNet2DConditionModel",
    scheduler: "DDIMScheduler",
    pairs: Pairs,
    names: list[str],
    options: ScoreSaliency | CompareScores,
) -> Iterator[torch.Tensor]:
    """Yield ||g_im||^2 of each image i of a micro-batch and each candidate m, fp32 [b, M]. Private.

    Args:
        unet: the public model; its weights get no gradient.
        scheduler: its noise schedule.
        pairs: one timestep and noise for each image, at which the gradient of its denoising loss is taken.
        names: candidate matrices.
        options: micro-batch and device.
    """
    unet.requires_grad_(False)
    with GhostNorms(unet, names) as norms:
        for start in track(range(0, len(pairs), options.micro_batch), "saliency", "batch"):
            rows = pairs.rows(start, start + options.micro_batch, options.device)
            denoising_loss(unet, scheduler, rows).sum().backward()
            yield norms.take()
