"""score-saliency: release noisy scores of the candidate matrices (DP-SAPF, selection stage)."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, SCORE
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Plan, Release, Spend
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import CompareScores, ScoreSaliency
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.privacy.kept import Once, on_record
from dpsapf.privacy.mechanisms import Ranking, Refused, mechanism
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.plan import default_delta
from dpsapf.privacy.values import Private, Released, only_released
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Objective
from dpsapf.public_models.latents import Batch, Latents, Origin, Pairs, check_origin, draw_batch, origin
from dpsapf.public_models.precision import in_precision
from dpsapf.saliency.plan import saliency_release
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.scores import Bounds, score
from dpsapf.saliency.select import candidates, ranking
from dpsapf.saliency.signal import signal_norms
from dpsapf.support.checked import replace
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.parallel import processes
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record
from dpsapf.support.replay import Replay
from dpsapf.support.tables import write_table

LOG = logging.getLogger(__name__)


def score_saliency(options: ScoreSaliency) -> None:
    """Release the scores (one row per candidate) and write the spend record of their release, and its private measures.

    Raises:
        UserError: latents or prompts are of another dataset or model; propose-test-release refuses, now or when it was asked
            before; mechanism and sigma_s do not go together; or see `as_planned`. A refusal has spent its epsilon: refused.json,
            beside the spend record, says so, stays, and is not drawn again.
    """
    dataset = read_record(options.dataset, DatasetRecord)
    subject, options = _subject(options), as_planned(options)
    once = Once(options, "saliency", options.noise if options.mechanism else None, subject, dataset.id)
    if _made(once):
        return
    check_origin("--latents", options.latents, Origin(dataset.id, sha256(options.model)))
    checkpoint = Checkpoint.beside(options.scores, settings(options), options.checkpoint_minutes)
    torch.set_num_threads(options.threads)
    model = load_model(read_record(options.model, ModelRecord))
    table = candidates(options.candidate_table, options.candidates)
    latents = Latents.load(options.latents, options.prompts, options.model, options.unit)
    units, release = _planned(options, table, len(latents))
    with processes(options.device) as joined:
        progress = Progress.resumed(Meter(len(latents)), checkpoint, joined, options.device)
        batch = _batch(options, release, progress)
        denoiser = in_precision(model.denoiser(options.device).requires_grad_(False), options.precision)
        objective = model.objective()
        exact = saliency_scores(denoiser, objective, latents, batch, table[MATRIX].tolist(), options, progress)
    if joined.leads:
        with once.making() as there:
            refused = _release(there, exact, table, units, release, progress.meter, checkpoint.seconds)
        checkpoint.remove()
        if refused:
            raise refused


def _batch(options: ScoreSaliency, release: Release, progress: Progress) -> torch.Tensor:
    """Draw who takes part, the same in every process; or say who does, if some rows are scored already."""
    if progress.rows:
        LOG.info("goes on after %d %ss, %s", progress.rows, options.unit, progress.checkpoint.path)
        return progress.meter.participants()
    who = _draws(options).secret("batch")
    batch = progress.meter.batch(release.sampling_rate, progress.joined.agree_on_generator(who, options.device))
    progress.joined.check_same(batch, "units in the batch")
    return batch


def _release(
    options: ScoreSaliency,
    exact: Private,
    table: pd.DataFrame,
    units: Ranking,
    release: Release,
    meter: Meter,
    seconds: float,
) -> Refused | None:
    """Write the scores and their records; or the refusal's records, if the mechanism refused, which is returned."""
    identity = origin(options.latents).dataset_id
    source = _draws(options).noise("privacy noise")
    try:
        released = mechanism(release.mechanism).release(exact, units, release, source, meter)
    except Refused as refused:
        write_record(_refusal(options), _spend(options, release, meter, identity, None, len(table), seconds))
        return refused
    _write_scores(options.scores, table, released)
    write_record(options.spend, _spend(options, release, meter, identity, options.scores, len(table), seconds))
    return None


def _write_scores(path: Path, table: pd.DataFrame, released: Released) -> None:
    (scores,) = only_released(released).values
    write_table(path, pd.DataFrame({MATRIX: table[MATRIX], SCORE: scores.cpu().numpy()}), (MATRIX, SCORE))


def _draws(options: ScoreSaliency) -> Draws:
    return Draws(options.noise, options.seed, "saliency")


def _refusal(options: ScoreSaliency) -> Path:
    return options.spend.with_name("refused.json")


def _made(once: Once) -> bool:
    """Put scores back that were released with real noise (`dpsapf.privacy.kept`); say whether there are any.

    Raises:
        UserError: the release was refused before; one that the owner has set free since does not count.
    """
    made, refusal = once.put_back(), _refusal(once.options)
    if once.refused if made else refusal.exists() and not on_record(read_record(refusal, Spend)):
        remedy = (
            "this release was refused before, and epsilon is spent. Use mechanism gaussian or exponential, a smaller sigma_s or "
            "another ratio; give the file to plan-privacy as --prior"
        )
        raise UserError("--spend", str(refusal), remedy)
    return made


def _spend(
    options: ScoreSaliency, release: Release, meter: Meter, identity: str, scores: Path | None, numbers: int, seconds: float
) -> Spend:
    """Write private.json and describe what was spent; ``scores``: the released file, None after a refusal."""
    private = options.private if scores else options.private.with_name("private.refused.json")
    write_record(private, meter.measured(seconds, options.device))
    return Spend(
        subject=_subject(options),
        release=meter.release(release),
        unit=options.unit,
        population=meter.population,
        dataset_id=identity,
        made_from={name: sha256(getattr(options, name)) for name in ("model", "latents", "candidate_table")},
        digest=sha256(scores) if scores else "",
        numbers=numbers,
        trainable_parameters=0,
        private=sha256(private),
        provenance=provenance(),
    )


def as_planned(options: ScoreSaliency) -> ScoreSaliency:
    """Take the bound and sigma_s that a plan found, if one is given.

    Raises:
        UserError: the plan is of other scores or another dataset; or the bound is auto, and none is given.
    """
    if options.plan is None:
        if options.mechanism and options.clipping_norm == "auto":
            raise UserError("--plan", None, "clipping_norm auto is found by the plan of a run that uses the scores: give it")
        return options
    plan, dataset = read_record(options.plan, Plan), read_record(options.dataset, DatasetRecord)
    release = next((release for release in plan.releases if release.name == "saliency"), None)
    told = {"dataset_id": (plan.dataset_id, dataset.id), "candidates": (plan.run.released_from, options.candidates)}
    told |= {name: (getattr(plan.run, name), getattr(options, name)) for name in ("score", "mechanism", "seed")}
    for key, (found, due) in told.items():
        if found != due or release is None:
            raise UserError(f"{options.plan}: {key}", found, f"must be {due}: give the plan of a run that uses these scores")
    return replace(options, clipping_norm=plan.saliency_clipping_norm, sigma_s=release.noise_multiplier)


def _subject(options: ScoreSaliency) -> str:
    """Name the scores as the runs that use them do."""
    if options.plan is not None:
        return read_record(options.plan, Plan).run.scores_id
    dataset, model = read_record(options.dataset, DatasetRecord), read_record(options.model, ModelRecord)
    axes = {name: getattr(options, name) for name in ("score", "mechanism", "sigma_s", "level", "ratio", "candidates", "seed")}
    return RunSpec(dataset=dataset.name, public_model=model.name, method="dp-sapf", **axes).scores_id


def _planned(options: ScoreSaliency, table: pd.DataFrame, images: int) -> tuple[Ranking, Release]:
    if (options.mechanism is None) != (options.sigma_s is None):
        raise UserError("--sigma-s", options.sigma_s, "give it together with --mechanism, or leave out both")
    units = ranking(table, options.level, options.ratio, options.score, bounds(options))
    delta = options.delta or default_delta(images)
    return units, saliency_release(images, options, units, options.mechanism, options.sigma_s, delta, options.noise)


def bounds(options: ScoreSaliency) -> Bounds:
    """Return what limits an image's contribution; nothing does without a mechanism."""
    return Bounds(clipping_norm=options.clipping_norm if options.mechanism else math.inf, votes=options.votes)


def saliency_scores(
    denoiser: torch.nn.Module,
    objective: Objective,
    latents: Latents,
    batch: torch.Tensor,
    names: list[str],
    options: ScoreSaliency,
    progress: Progress,
) -> Private:
    """Compute every candidate's score over a batch: contributions, summed, or `signal_norms`.

    Args:
        denoiser: of the public model; its weights get no gradient.
        objective: what it was trained for.
        latents: encoded images.
        batch: units that take part, int64 [B]: images, or users, each of whom is scored by one image drawn from theirs.
        names: candidate matrices, M names of linear layers or convolutions.
        options: score, bounds, micro-batch and seed.
        progress: rows that are scored already, and the meter of the release, which sees what every unit contributes.

    Returns:
        Scores, one tensor, float64 [M].
    """
    row, limits = score(options.score), bounds(options)
    draws = progress.meter.secret(progress.joined.agree_on_generator(_draws(options).secret("pairs"), options.device))
    watched = dataclasses.replace(latents, read=progress.meter.watched(latents.users))
    drawn = draw_batch(watched, batch, 1, objective.timesteps, draws)
    if row.contributions is None:
        return signal_norms(denoiser, objective, drawn, names, options, progress)
    progress.begin([torch.zeros(len(names), dtype=torch.float64, device=options.device)])
    parts = progress.parts(len(drawn), options.micro_batch)
    for squared in squared_gradient_norms(denoiser, objective, drawn, names, options, parts):
        progress.add(row.contributions(squared, limits), row.sensitivity(limits))
    return Private(progress.total())


def squared_gradient_norms(
    denoiser: torch.nn.Module,
    objective: Objective,
    batch: Batch,
    names: list[str],
    options: ScoreSaliency | CompareScores,
    parts: Iterable[range] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield ||g_im||^2 of each image i of a micro-batch and each candidate m, fp32 [b, M]. Private.

    Args:
        denoiser: of the public model; its weights get no gradient.
        objective: what it was trained for.
        batch: one timestep and noise for each image, at which the gradient of its denoising loss is taken.
        names: candidate matrices.
        options: micro-batch and device.
        parts: rows of each micro-batch, maybe none; all in turn if omitted.
    """
    denoiser.requires_grad_(False)
    replay = Replay(options.device)
    with GhostNorms(denoiser, names) as norms:

        def squared(*rows: torch.Tensor) -> tuple[torch.Tensor]:
            norms.forget()
            objective.loss(denoiser, Pairs(*rows)).sum().backward()
            return (norms.take(),)

        for part in parts or Progress(Meter(0)).parts(len(batch), options.micro_batch):
            if part:
                (found,) = replay(squared, batch.rows(part.start, part.stop, options.device).tensors)
            yield found.clone() if part else torch.zeros(0, len(names), device=options.device)
