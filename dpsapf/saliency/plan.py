"""plan-privacy: describe the saliency release of a run, and hand it to `dpsapf.privacy.plan` for the rest."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.datasets.images import BATCH
from dpsapf.datasets.prepared import read_part
from dpsapf.experiment.columns import CANDIDATES
from dpsapf.experiment.methods import AXES, NoiseMode, method
from dpsapf.experiment.records import DatasetRecord, Plan, Release
from dpsapf.experiment.runs import RunSpec, check_noise
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.privacy import spends
from dpsapf.privacy.accounting import rounded_up
from dpsapf.privacy.calibrations import calibrated
from dpsapf.privacy.compose import Named, named_prior
from dpsapf.privacy.kept import source
from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.privacy.plan import (
    check_axes,
    check_possible,
    check_same,
    default_delta,
    make_plan,
    own_release,
    population,
)
from dpsapf.privacy.spends_found import take_in
from dpsapf.saliency.expected import NEAR, kept_of_selection, median_norm, read_gradients, told
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import candidates, ranking
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import copied, sha256
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
RAISED = 1.008  # times DP-SGD's noise alone: 1 %, less what two searches for noise may miss
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
    run, dataset, told, proxy = _described(options)
    saliency = Scoring.of(run, dataset, options) if run.selects else None
    releases = [saliency.release] if saliency else []
    if kept := source("plan.json", options.out.parent, run.id):
        check_same(read_record(kept, Plan), run, dataset, releases, options, proxy)
        copied(kept, options.out)
        LOG.info("%s was released by a plan, which is put back: %s", run.id, kept)
        return
    counted = contextlib.nullcontext(told)
    if _spends_for_good(run, options):
        _put_on_record(run, dataset, proxy, options)
        counted = spends.planning(run, dataset.id, options.unit, told)
    with counted as prior:
        plan = make_plan(run, dataset, releases, options, list(prior.values()), [key for key, _ in prior], proxy)
        write_record(options.out, replace(plan, **saliency.told(options)) if saliency else plan)


def check_plan(options: PlanPrivacy) -> None:
    """Check that `plan_privacy` can make a plan; nothing is written, and no noise is looked for.

    Raises:
        UserError: it cannot, for the reason that it would tell.
    """
    run, dataset, prior, proxy = _described(options)
    kept = source("plan.json", options.out.parent, run.id)
    known = run.selects and (kept or run.sigma_s != "auto")  # else sigma_s is what the target allows
    saliency = [Scoring.of(run, dataset, options).release] if known else []
    if kept:
        check_same(read_record(kept, Plan), run, dataset, saliency, options, proxy)
        return
    if _spends_for_good(run, options):
        prior = spends.priors(run, dataset.id, options.unit, prior)
    check_possible(run, dataset, [*prior.values(), *saliency], options)


def _spends_for_good(run: RunSpec, options: PlanPrivacy) -> bool:
    return options.noise == "system" and run.epsilon is not None


def _put_on_record(run: RunSpec, dataset: DatasetRecord, proxy: DatasetRecord | None, options: PlanPrivacy) -> None:
    """Let the record of spends know the images, and what the results folder says was spent on them.

    Raises:
        UserError: the images are needed and not named, or others than the dataset's; or the run is released already; or the
            images whose scores choose are private, too.
    """
    spends.know(dataset, lambda: _images("--archive", options.archive, dataset))
    if proxy is not None:
        spends.know(proxy, lambda: _images("--proxy-archive", options.proxy_archive, proxy))
        spends.check_public(proxy, dataset)
    folder = options.out.resolve().parent
    if folder.parent.name == "runs":
        take_in(folder.parent.parent, dataset)
    spends.check_not_released(run.id, dataset.id)


def _images(option: str, archive: Path | None, dataset: DatasetRecord) -> Iterator[np.ndarray]:
    """Yield a dataset's training and validation images in batches, uint8 [b, H, W, 3]."""
    if archive is None or sha256(archive) != dataset.id:
        remedy = (
            f"must be the dataset.safetensors of {dataset.name}: what is spent on its images is kept on record (noise system)"
        )
        raise UserError(option, archive and str(archive), remedy)
    for split in ("train", "validation"):
        part = read_part(archive, split)
        yield from (part[start : start + BATCH] for start in range(0, len(part), BATCH))


def _described(options: PlanPrivacy) -> tuple[RunSpec, DatasetRecord, Named, DatasetRecord | None]:
    """Return a run, its dataset, and what its target holds besides DP-SGD, or votes, and scores: earlier releases.

    The last is another dataset, whose scores choose, if one does.

    Raises:
        UserError: an axis that the method needs is missing, or the public model's family does not know what it trains; or see
            `check_noise`.
    """
    dataset = read_record(options.dataset, DatasetRecord)
    given = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    run = RunSpec(dataset=dataset.name, public_model=options.public_model, method=options.method, seed=options.seed, **given)
    run = replace(run, **{axis: value for axis, value in DEFAULT_AXES.items() if axis in run.uses - given.keys()})
    check_axes(run)
    check_noise(run, options.noise)
    _check_family(run, options)
    prior = named_prior(options.prior, dataset.id, options.unit)
    return run, dataset, prior, _proxy(run, dataset, options)


def _proxy(run: RunSpec, dataset: DatasetRecord, options: PlanPrivacy) -> DatasetRecord | None:
    """Read the record of another dataset, whose scores choose; None if none does.

    Raises:
        UserError: it is missing, of another dataset than the run names, or of the private images under another name.
    """
    if run.scored_dataset in (None, run.dataset):
        return None
    if options.proxy_dataset is None:
        raise UserError("--proxy-dataset", None, f"the run selects by scores of {run.proxy}: give its dataset.json")
    proxy = read_record(options.proxy_dataset, DatasetRecord)
    if proxy.name != run.proxy:
        raise UserError("--proxy-dataset", proxy.name, f"must be the dataset.json of {run.proxy}")
    if proxy.id == dataset.id:
        raise UserError("proxy", run.proxy, f"has the images of {dataset.name}: give them one name")
    return proxy


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


def automatic_sigma(
    run: RunSpec, population: int, delta: float, options: PlanPrivacy, scored: Callable[[float], Release]
) -> float:
    """Find the least sigma_s that raises the noise multiplier of a run's DP-SGD by at most 1 %, to two digits.

    Earlier releases do not count, so that runs which share scores find the same.

    Args:
        run: with an epsilon.
        population: N.
        delta: target delta.
        options: DP-SGD's settings.
        scored: sigma_s -> the saliency release.

    Raises:
        UserError: no noise meets the target.
    """
    row = method(run.method)
    find = partial(calibrated, options.calibrations, run.epsilon, delta)
    raised = own_release(row, RAISED * find(lambda sigma: [own_release(row, sigma, population, options)]), population, options)
    return rounded_up(find(lambda sigma: [raised, scored(sigma)]), 2)


@dataclass(frozen=True)
class Scoring:
    """The saliency release of a run, with what is auto found.

    Attributes:
        run: whose scores they are.
        table: the candidates.
        population: N.
        bounds: what limits an image's contribution.
        release: as it is planned.
    """

    run: RunSpec
    table: pd.DataFrame
    population: int
    bounds: Bounds
    release: Release

    @classmethod
    def of(cls, run: RunSpec, dataset: DatasetRecord, options: PlanPrivacy) -> "Scoring":
        """Describe a run's release.

        Raises:
            UserError: the bound is auto, and there are no gradients of own samples; or see `automatic_sigma`.
        """
        table, count = candidates(options.candidate_table, run.released_from), population(dataset, options.unit)
        bound = options.saliency.clipping_norm
        if bound == "auto":
            bound = median_norm(read_gradients(options.gradients, table)) if run.mechanism else math.inf
        bounds = Bounds(clipping_norm=bound, votes=options.saliency.votes)
        units, delta = ranking(table, run.level, run.ratio, run.score, bounds), options.delta or default_delta(count)

        def scored(sigma: float | None) -> Release:
            return saliency_release(count, options.saliency, units, run.mechanism, sigma, delta, options.noise)

        sigma = automatic_sigma(run, count, delta, options, scored) if run.sigma_s == "auto" else run.sigma_s
        return cls(run, table, count, bounds, scored(sigma))

    def told(self, options: PlanPrivacy) -> dict[str, object]:
        """Return what a plan says of the release beside it; warn where noise leaves little of the selection."""
        bound = self.bounds.clipping_norm
        found: dict[str, object] = {"saliency_clipping_norm": bound if self.run.mechanism else None}
        if self.run.mechanism is None or options.gradients is None:
            return found
        squared = read_gradients(options.gradients, self.table)
        kept = kept_of_selection(squared, self.table, self.run, self.release, self.population, self.bounds)
        if kept is None:
            return found
        line = told(kept, self.run, self.release, self.population, bound)
        LOG.log(logging.WARNING if NEAR in line else logging.INFO, "%s: %s", self.run.id, line)
        return found | {"selection_kept": line}
