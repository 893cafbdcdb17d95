"""finetune: train a run's parameters with DP-SGD, exactly as its plan says."""

import dataclasses
import hashlib
import json
import logging
import time
import typing
import warnings

import pandas as pd
import torch
from safetensors.torch import save_file

from dpsapf.commands import Finetune
from dpsapf.errors import UserError
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.finetune.per_image import PerImageGradients, per_image_gradients
from dpsapf.formats import ModelRecord, Plan, Release, Spend
from dpsapf.measure import peak_memory_mb
from dpsapf.privacy.noise import noise_source
from dpsapf.privacy.poisson import poisson_batch, sampling_generator
from dpsapf.progress import track
from dpsapf.public_models.latents import Latents, denoising_loss, draw_pairs
from dpsapf.public_models.load import load_scheduler, load_unet
from dpsapf.randomness import torch_generator
from dpsapf.records import as_json, atomic, provenance, read_record, sha256, write_record

if typing.TYPE_CHECKING:
    from diffusers import DDIMScheduler

LOG = logging.getLogger(__name__)


def finetune(options: Finetune) -> None:
    """Write the trained parameters, the private training log and the spend record; resume if interrupted.

    The checkpoint stands beside the weights until they are written.

    Raises:
        UserError: the plan has no DP-SGD release, or the latents are not of the plan's number of images.
    """
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # the latents need no gradient: as intended
    plan, release = _planned(options)
    latents = Latents.load(options.latents)
    if len(latents) != plan.images:
        raise UserError("--latents", len(latents), f"the plan is for {plan.images} images: use the plan's dataset")
    gradients, scheduler, state = _build(options, plan)
    checkpoint = options.weights.with_name("checkpoint.safetensors")
    identity = _identity(options)
    if load_checkpoint(checkpoint, state, identity):
        LOG.info("%s: resuming at step %d of %d", plan.run.id, state.step, release.steps)
    for _ in track(range(state.step, release.steps), plan.run.id, "step", release.steps, state.step):
        train_step(gradients, scheduler, latents, state, plan, release, options)
        if state.step % options.checkpoint_every == 0:
            save_checkpoint(checkpoint, state, identity)
    _write(options, plan, release, state)
    checkpoint.unlink(missing_ok=True)


def _planned(options: Finetune) -> tuple[Plan, Release]:
    plan = read_record(options.plan, Plan)
    releases = [release for release in plan.releases if release.name == "dp-sgd"]
    if not releases:
        raise UserError("--plan", plan.run.method, "this method trains nothing: sample from the public model")
    return plan, releases[0]


def _build(options: Finetune, plan: Plan) -> tuple[PerImageGradients, "DDIMScheduler", TrainingState]:
    record = read_record(options.model, ModelRecord)
    unet = load_unet(record, options.device)
    parameters = trainable(unet, plan.run, pd.read_csv(options.selection), options.lora_rank, options.lora_alpha)
    rate = options.learning_rate_full if plan.run.adapter is None else options.learning_rate_lora
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    average = {name: value.detach().clone() for name, value in parameters.items()} if options.ema_decay else None
    gradients = per_image_gradients(unet, parameters, plan.run.adapter)
    return gradients, load_scheduler(record), TrainingState(parameters, optimizer, average)


def train_step(
    gradients: PerImageGradients,
    scheduler: "DDIMScheduler",
    latents: Latents,
    state: TrainingState,
    plan: Plan,
    release: Release,
    options: Finetune,
) -> None:
    """Do one step of DP-SGD and update the state; every random draw depends on the run's seed and the step alone."""
    start, seed, step = time.monotonic(), plan.run.seed, state.step
    batch = poisson_batch(plan.images, release.sampling_rate, sampling_generator(plan.noise, seed, "finetune", step))
    timesteps = scheduler.config.num_train_timesteps
    pairs = draw_pairs(latents, batch, options.noise_multiplicity, timesteps, torch_generator(seed, "finetune", "pairs", step))
    report = private_gradient(
        lambda rows: denoising_loss(gradients.model, scheduler, rows),
        gradients,
        list(state.parameters.values()),
        pairs,
        release,
        multiplicity=options.noise_multiplicity,
        clipping=plan.clipping,
        expected_batch=release.sampling_rate * plan.images,
        micro_batch=options.micro_batch,
        device=options.device,
        noise=noise_source(plan.noise, torch_generator(seed, "finetune", "privacy noise", step, device=options.device)),
    )
    state.optimizer.step()
    state.step += 1
    _update_average(state, options.ema_decay)
    seconds = time.monotonic() - start
    state.seconds += seconds
    state.log.append(_row(state, report, seconds))


def _update_average(state: TrainingState, decay: float) -> None:
    """Follow the weights with decay min(decay, (1 + t)/(10 + t)): post-processing, free of privacy cost."""
    if state.average is None:
        return
    weight = 1 - min(decay, (1 + state.step) / (10 + state.step))
    for name, parameter in state.parameters.items():
        state.average[name].lerp_(parameter.detach(), weight)


def _row(state: TrainingState, report: typing.Any, seconds: float) -> dict[str, float]:  # noqa: ANN401
    return {
        "step": state.step,
        "images": report.images,
        "loss": report.loss,
        "gradient_norm_mean": report.gradient_norm,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "seconds": round(seconds, 4),
    }


def _identity(options: Finetune) -> str:
    """Digest what the result depends on: the contents of the inputs and the settings, not their paths."""
    settings = as_json(options)
    for field in dataclasses.fields(options):
        if field.metadata.get("reads"):
            settings[field.name] = sha256(getattr(options, field.name))
        elif field.metadata.get("writes"):
            del settings[field.name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _write(options: Finetune, plan: Plan, release: Release, state: TrainingState) -> None:
    weights = state.average or {name: value.detach() for name, value in state.parameters.items()}
    with atomic(options.weights) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, temporary)
    with atomic(options.training_log) as temporary:
        pd.DataFrame(state.log).to_csv(temporary, index=False)
    spend = Spend(
        release=dataclasses.replace(release, steps=state.step),
        images=plan.images,
        dataset_sha256=plan.dataset_sha256,
        realised_batches=tuple(int(row["images"]) for row in state.log),
        digest=sha256(options.weights),
        trainable_parameters=sum(value.numel() for value in weights.values()),
        seconds=state.seconds,
        peak_memory_mb=peak_memory_mb(options.device),
        provenance=provenance(),
    )
    write_record(options.spend, spend)
