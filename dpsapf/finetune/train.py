"""finetune: train a run's parameters with DP-SGD, exactly as its plan says."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch.utils.checkpoint import checkpoint as checkpointed

from dpsapf.experiment.columns import SELECTED
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import ModelRecord, Plan, Release, Spend, WeightsHeader
from dpsapf.experiment.settings import UpdateConfig
from dpsapf.experiment.stages import Finetune
from dpsapf.finetune.adapters import resting, trainable
from dpsapf.finetune.checkpoint import TrainingState, contents, restore
from dpsapf.finetune.dp_sgd import StepReport, private_gradient
from dpsapf.finetune.weights import write_weights
from dpsapf.gradients.per_image import PerImageGradients, per_image_gradients
from dpsapf.optimization.noise_walk import noise_deviation, noise_walk
from dpsapf.optimization.optimizers import build_optimizer
from dpsapf.optimization.schedule import average_weight, rate_factor
from dpsapf.privacy.kept import Once
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.spends import check_planned
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Objective
from dpsapf.public_models.latents import Batch, Latents, Origin, check_origin, draw_batch, origin
from dpsapf.public_models.precision import in_precision
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.parallel import Processes, processes
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record
from dpsapf.support.replay import NO_REPLAY, Replay

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What does not change while training."""

    options: Finetune
    plan: Plan
    release: Release
    latents: Latents
    objective: Objective
    gradients: PerImageGradients
    processes: Processes
    replay: Replay = NO_REPLAY


def finetune(options: Finetune) -> None:
    """Write the trained parameters, the spend record and, private, its measures and the log; resume if interrupted.

    The checkpoint, private too, stands beside the weights until they are written. Under torchrun, processes share each
    batch.

    Raises:
        UserError: the plan has no DP-SGD release, or is of another dataset, model or number of images or users than the latents.
    """
    torch.set_num_threads(options.threads)
    plan, release = _planned(options)
    once = Once(options, release.name, release.noise and plan.noise, plan.run.id, plan.dataset_id)
    if once.put_back():
        return
    check_planned(plan)
    check_origin("--latents", options.latents, Origin(plan.dataset_id, sha256(options.model)))
    latents = Latents.load(options.latents, options.prompts, options.model, plan.unit)
    if len(latents) != plan.population:
        raise UserError("--latents", len(latents), f"the plan is for {plan.population} {plan.unit}s: use the plan's dataset")
    with processes(options.device) as joined:
        gradients, objective, state = _build(options, plan, release)
        watched = dataclasses.replace(latents, read=state.meter.watched(latents.users))
        _train(Training(options, plan, release, watched, objective, gradients, joined, Replay(options.device)), state, once)


def _train(training: Training, state: TrainingState, once: Once) -> None:
    options, plan, steps, joined = training.options, training.plan, training.release.steps, training.processes
    checkpoint = Checkpoint.beside(options.weights, settings(options), options.checkpoint_minutes, options.checkpoint_every)
    if (saved := checkpoint.load()) is not None:
        restore(state, *saved)
        LOG.info("%s: resuming at step %d of %d", plan.run.id, state.step, steps)
    joined.check_equal(state.step, "step that a process resumes at")
    left = track(range(state.step, steps), plan.run.id, "step", steps, state.step)
    for _ in checkpoint.kept(left, lambda: contents(state), joined):
        train_step(training, state)
    if joined.leads:
        with once.making() as there:
            _write(dataclasses.replace(training, options=there), state)
        checkpoint.remove()


def _planned(options: Finetune) -> tuple[Plan, Release]:
    plan = read_record(options.plan, Plan)
    releases = [release for release in plan.releases if release.name == "dp-sgd"]
    if not releases:
        raise UserError("--plan", plan.run.method, "this method trains nothing: sample from the public model")
    return plan, releases[0]


def _build(options: Finetune, plan: Plan, release: Release) -> tuple[PerImageGradients, Objective, TrainingState]:
    model = load_model(read_record(options.model, ModelRecord))
    denoiser = model.denoiser(options.device)
    rank = plan.run.adapter_rank(options.lora_rank)
    selection = pd.read_csv(options.selection)
    parameters = trainable(denoiser, plan.run, selection, rank, options.lora_alpha)
    deviation = noise_deviation(release.noise_multiplier, release.sensitivity, release.sampling_rate * plan.population)
    rate = _peak_rate(options, plan, selection)
    optimizer = build_optimizer(plan.run.optimizer or options.optimizer, parameters.values(), rate, deviation)
    average = {name: value.detach().clone() for name, value in parameters.items()} if options.ema_decay else None
    if options.gradient_checkpointing:
        again = partial(checkpointed, use_reentrant=False, preserve_rng_state=False)  # a pass draws nothing
        denoiser.enable_gradient_checkpointing(again)
    gradients = per_image_gradients(in_precision(denoiser, options.precision), parameters, plan.run.adapter)
    return gradients, model.objective(), TrainingState(parameters, optimizer, average, Meter(plan.population))


def _peak_rate(options: Finetune, plan: Plan, selection: pd.DataFrame) -> float:
    if plan.run.learning_rate == "auto":
        rate = noise_walk(options.fragility, selection[selection[SELECTED]], plan, options).largest_rate()
        LOG.info("%s: noise allows a learning rate of %.3g", plan.run.id, rate)
        return rate
    return plan.run.learning_rate or (options.learning_rate_lora if plan.run.adapter else options.learning_rate_full)


def train_step(training: Training, state: TrainingState) -> None:
    """Do one step of DP-SGD and update the state; every random draw depends on the run's seed and the step alone."""
    start, step = time.monotonic(), state.step
    options, plan, release = training.options, training.plan, training.release
    report = private_gradient(
        lambda rows: training.objective.loss(training.gradients.model, rows),
        training.gradients,
        list(state.parameters.values()),
        _drawn(training, state.meter, step),
        release,
        multiplicity=options.noise_multiplicity,
        clipping=plan.clipping,
        micro_batch=options.micro_batch,
        device=options.device,
        noise=_draws(plan).noise("privacy noise", step, device=options.device, dtype=torch.float32),
        meter=state.meter,
        processes=training.processes,
        resting=resting(list(state.parameters), plan.run.adapter, step),
        replay=training.replay,
    )
    rate = _scheduled_rate(state, options, step, release.steps)
    state.optimizer.step()
    state.step += 1
    _update_average(state, options.ema_decay)
    seconds = time.monotonic() - start
    state.seconds += seconds
    state.log.append(_row(state, report, rate, seconds))


def _drawn(training: Training, meter: Meter, step: int) -> Batch:
    """Draw a step's Poisson batch with its timesteps and noise, the same in every process."""
    plan, device = training.plan, training.options.device
    who, draws = (
        meter.secret(training.processes.agree_on_generator(_draws(plan).secret(*names), device))
        for names in ((step, "batch"), ("pairs", step))
    )
    batch = meter.batch(training.release.sampling_rate, who)
    training.processes.check_same(batch, "units in the batch")
    timesteps = training.objective.timesteps
    return draw_batch(training.latents, batch, training.options.noise_multiplicity, timesteps, draws)


def _draws(plan: Plan) -> Draws:
    return Draws(plan.noise, plan.run.seed, "finetune")


def _scheduled_rate(state: TrainingState, options: Finetune, step: int, steps: int) -> float:
    """Set the optimizer's learning rate for a step, from the peak that it was built with; returns it."""
    (group,) = state.optimizer.param_groups
    group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate_factor(options.learning_rate_schedule, step, steps)
    return group["lr"]


def _update_average(state: TrainingState, decay: float) -> None:
    """Follow the weights with decay min(decay, (1 + t)/(10 + t)): post-processing, free of privacy cost."""
    if state.average is None:
        return
    weight = average_weight(decay, state.step)
    for name, parameter in state.parameters.items():
        state.average[name].lerp_(parameter.detach(), weight)


def _row(state: TrainingState, report: StepReport, rate: float, seconds: float) -> dict[str, float]:
    return {
        "step": state.step,
        "units": report.units,
        "loss": report.loss,
        "gradient_norm_mean": report.gradient_norm,
        "learning_rate": rate,
        "seconds": round(seconds, 4),
    }


def _header(options: Finetune, plan: Plan) -> WeightsHeader:
    """Say how the weights were trained: the config's values, but for those that are the run's own."""
    told = {key: getattr(options, key) for key in UpdateConfig.model_fields}
    rank = plan.run.adapter_rank(options.lora_rank)
    own = {"optimizer": plan.run.optimizer or options.optimizer, "lora_rank": rank, "adapter": plan.run.adapter}
    return WeightsHeader(**told | own)


def _write(training: Training, state: TrainingState) -> None:
    options, plan = training.options, training.plan
    weights = state.average or {name: value.detach() for name, value in state.parameters.items()}
    write_weights(options.weights, weights, _header(options, plan))
    with atomic(options.training_log) as temporary:
        pd.DataFrame(state.log).to_csv(temporary, index=False)
    write_record(options.private, state.meter.measured(state.seconds, options.device))
    numbers = sum(value.numel() for value in weights.values())
    spend = Spend(
        subject=plan.run.id,
        release=state.meter.release(training.release),
        unit=training.latents.unit,
        population=len(training.latents),
        dataset_id=origin(options.latents).dataset_id,
        made_from={name: sha256(getattr(options, name)) for name in ("plan", "model", "latents", "selection")},
        digest=sha256(options.weights),
        numbers=numbers,
        trainable_parameters=numbers,
        private=sha256(options.private),
        provenance=provenance(),
    )
    write_record(options.spend, spend)
