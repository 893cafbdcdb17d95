"""plan-privacy: describe the saliency release of a run, and hand it to `dpsapf.privacy.plan` for the rest."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.datasets.images import BATCH
from dpsapf.datasets.prepared import read_part
from dpsapf.experiment.columns import CANDIDATES
from dpsapf.experiment.methods import AXES, NoiseMode, method
from dpsapf.experiment.records import DatasetRecord, Plan, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.privacy import spends
from dpsapf.privacy.compose import Named, named_prior
from dpsapf.privacy.kept import source
from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.privacy.plan import check_axes, check_possible, check_same, default_delta, make_plan, population
from dpsapf.privacy.spends_found import take_in
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import candidates, ranking
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import copied, sha256
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
DEFAULT_AXES = {"score": "energy", "mechanism": "gaussian", "rule": "top", "candidates": "attention", "adapter": "lora"}


def plan_privacy(options: PlanPrivacy) -> None:
    """Write plan.json: target, relation, unit, what is public, every release and its noise.

    With noise of the operating system, what was spent on the images before counts, too, see `dpsapf.privacy.spends.planning`.
    A plan by which something was released stays as it was (`dpsapf.privacy.kept`).

    Args:
        options: the run, DP-SGD's settings and the saliency release's.

    Raises:
        UserError: the target cannot be met; the run is released already, by another plan or one that is not kept; or see
            `_described`.
    """
    run, dataset, saliency, told = _described(options)
    if kept := source("plan.json", options.out.parent, run.id):
        check_same(read_record(kept, Plan), run, dataset, saliency, options)
        copied(kept, options.out)
        LOG.info("%s was released by a plan, which is put back: %s", run.id, kept)
        return
    counted = contextlib.nullcontext(told)
    if _spends_for_good(run, options):
        _put_on_record(run, dataset, options)
        counted = spends.planning(run, dataset.id, options.unit, told)
    with counted as prior:
        plan = make_plan(run, dataset, saliency, options, list(prior.values()), [key for key, _ in prior])
        write_record(options.out, plan)


def check_plan(options: PlanPrivacy) -> None:
    """Check that `plan_privacy` can make a plan; nothing is written, and no noise is looked for.

    Raises:
        UserError: it cannot, for the reason that it would tell.
    """
    run, dataset, saliency, prior = _described(options)
    if kept := source("plan.json", options.out.parent, run.id):
        check_same(read_record(kept, Plan), run, dataset, saliency, options)
        return
    if _spends_for_good(run, options):
        prior = spends.priors(run, dataset.id, options.unit, prior)
    check_possible(run, dataset, [*prior.values(), *saliency], options)


def _spends_for_good(run: RunSpec, options: PlanPrivacy) -> bool:
    return options.noise == "system" and run.epsilon is not None


def _put_on_record(run: RunSpec, dataset: DatasetRecord, options: PlanPrivacy) -> None:
    """Let the record of spends know the images, and what the results folder says was spent on them.

    Raises:
        UserError: the images are needed and not named, or others than the dataset's; or the run is released already.
    """
    spends.know(dataset, lambda: _images(options.archive, dataset))
    folder = options.out.resolve().parent
    if folder.parent.name == "runs":
        take_in(folder.parent.parent, dataset)
    spends.check_not_released(run.id, dataset.id)


def _images(archive: Path | None, dataset: DatasetRecord) -> Iterator[np.ndarray]:
    """Yield a dataset's training and validation images in batches, uint8 [b, H, W, 3]."""
    if archive is None or sha256(archive) != dataset.id:
        remedy = (
            f"must be the dataset.safetensors of {dataset.name}: what is spent on its images is kept on record (noise system)"
        )
        raise UserError("--archive", archive and str(archive), remedy)
    for split in ("train", "validation"):
        part = read_part(archive, split)
        yield from (part[start : start + BATCH] for start in range(0, len(part), BATCH))


def _described(options: PlanPrivacy) -> tuple[RunSpec, DatasetRecord, list[Release], Named]:
    """Return a run, its dataset, and what its target holds besides DP-SGD or votes: scores and earlier releases.

    Raises:
        UserError: an axis that the method needs is missing, or the public model's family does not know what it trains.
    """
    dataset = read_record(options.dataset, DatasetRecord)
    defaults = {axis: value for axis, value in DEFAULT_AXES.items() if axis in method(options.method).uses}
    given = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    fixed = {"public_model": options.public_model, "method": options.method, "seed": options.seed}
    run = RunSpec(dataset=dataset.name, **fixed, **(defaults | given))
    check_axes(run)
    _check_family(run, options)
    saliency = [_planned(run, population(dataset, options.unit), options)] if method(run.method).selects else []
    return run, dataset, saliency, named_prior(options.prior, dataset.id, options.unit)


def _check_family(run: RunSpec, options: PlanPrivacy) -> None:
    """Refuse what the public model's family has no per-image gradients for, before anything is computed."""
    row = method(run.method)
    if row.trains and not row.trains_more:
        candidates(options.candidate_table, run.released_from)
    if row.trains_more and "all-params" not in set(pd.read_csv(options.candidate_table)[CANDIDATES]):
        remedy = (
            f"trains {row.trained}, and the family of {run.public_model} knows the gradients of its candidates alone: train those"
        )
        raise UserError("method", run.method, remedy)


def saliency_release(
    count: int,
    settings: SaliencyConfig,
    units: Ranking,
    mechanism_name: str | None,
    sigma_s: float | None,
    delta: float,
    noise: NoiseMode,
) -> Release:
    """Describe the saliency release of a run: what is planned, and what score-saliency then does.

    Args:
        count: N.
        settings: expected batch B_s; the rate is this over N, at most 1.
        units: what is ranked, and its sensitivities.
        mechanism_name: key of the mechanism registry; None: exact, without a guarantee.
        sigma_s: noise multiplier, or that of equal zCDP cost; None without a mechanism.
        delta: target delta of the run.
        noise: where it is drawn from.
    """
    rate = min(settings.expected_batch_size / count, 1.0)
    planned = mechanism(mechanism_name or "none").plan(units, sigma_s, rate, delta)
    return replace(planned, noise=noise if mechanism_name else None)


def _planned(run: RunSpec, count: int, options: PlanPrivacy) -> Release:
    bounds = Bounds(clipping_norm=options.saliency.clipping_norm, votes=options.saliency.votes)
    table = candidates(options.candidate_table, run.released_from)
    units = ranking(table, run.level, run.ratio, run.score, bounds)
    delta = options.delta or default_delta(count)
    return saliency_release(count, options.saliency, units, run.mechanism, run.sigma_s, delta, options.noise)
