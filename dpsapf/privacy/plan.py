"""plan-privacy: fix every release of a run, and the noise that meets its target, before anything is computed."""

import logging
import math

from dpsapf.commands import PlanPrivacy
from dpsapf.errors import UserError
from dpsapf.formats import DatasetRecord, Plan, Release
from dpsapf.methods import AXES, method
from dpsapf.privacy.accounting import MARGIN, RELATION, UNIT, calibrate, epsilon
from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.records import provenance, read_record, write_record
from dpsapf.runs import RunSpec
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import candidates, ranking

LOG = logging.getLogger(__name__)
DEFAULT_AXES = {"score": "energy", "mechanism": "gaussian", "candidates": "attention", "adapter": "lora"}
PUBLIC = (
    "N, the number of training images, and with it delta and the sampling rates",
    "the class names, their prompts and the number of classes",
    "hyperparameters, chosen without the images that the run trains on",
    "the public model",
)


def plan_privacy(options: PlanPrivacy) -> None:
    """Write plan.json: target, relation, unit, what is public, every release and its noise.

    Args:
        options: the run, DP-SGD's settings and the saliency release's.

    Raises:
        UserError: the target cannot be met, or an axis that the method needs is missing.
    """
    dataset = read_record(options.dataset, DatasetRecord)
    defaults = {axis: value for axis, value in DEFAULT_AXES.items() if axis in method(options.method).uses}
    given = {axis: getattr(options, axis) for axis in AXES if getattr(options, axis) is not None}
    run = RunSpec(
        dataset=dataset.name, public_model=options.public_model, method=options.method, seed=options.seed, **(defaults | given)
    )
    check_axes(run)
    write_record(options.out, make_plan(run, dataset, options))


def make_plan(run: RunSpec, dataset: DatasetRecord, options: PlanPrivacy) -> Plan:
    """Calibrate a run's releases; returns the plan without writing it.

    Raises:
        UserError: the target cannot be met.
    """
    row, delta = method(run.method), options.delta or default_delta(dataset.train)
    saliency = [_saliency(run, dataset.train, delta, options)] if row.selects else []
    alone = _dp_sgd_noise([], run, dataset.train, delta, options)
    sigma = _dp_sgd_noise(saliency, run, dataset.train, delta, options) if saliency else alone
    releases = [*saliency, *([dp_sgd_release(sigma, dataset.train, options)] if row.trains else [])]
    LOG.info("%s: %d releases, noise multiplier %s (%s without selection)", run.id, len(releases), sigma, alone)
    guaranteed = run.epsilon is not None
    return Plan(
        run=run,
        images=dataset.train,
        target_epsilon=run.epsilon,
        delta=delta,
        relation=RELATION,
        unit=UNIT,
        public=PUBLIC,
        clipping=options.clipping if row.private else "none",
        clipping_norm=options.clipping_norm,
        noise=options.noise,
        releases=tuple(releases),
        planned_epsilon={name: epsilon(name, releases, delta) for name in ("pld", "rdp")} if guaranteed else {},
        selection_epsilon=epsilon("pld", saliency, delta) if saliency and guaranteed else None,
        dp_sgd_noise_alone=alone,
        dataset_sha256=dataset.sha256,
        provenance=provenance(),
    )


def default_delta(images: int) -> float:
    """Return the paper's delta, 1/(N ln N), for N training images (N >= 2)."""
    return 1 / (images * math.log(images))


def saliency_release(
    images: int, expected_batch_size: int, ranking: Ranking, mechanism_name: str, sigma_s: float | None, delta: float
) -> Release:
    """Describe the saliency release of a run: what is planned, and what score-saliency then does.

    Args:
        images: N.
        expected_batch_size: B_s; the rate is this over N, at most 1.
        ranking: units and sensitivities.
        mechanism_name: key of the mechanism registry.
        sigma_s: noise multiplier, or that of equal zCDP cost; None for mechanism ``none``.
        delta: target delta of the run.
    """
    return mechanism(mechanism_name).plan(ranking, sigma_s, min(expected_batch_size / images, 1.0), delta)


def _saliency(run: RunSpec, images: int, delta: float, options: PlanPrivacy) -> Release:
    bounds = Bounds(clipping_norm=options.saliency_clipping_norm, votes=options.saliency_votes)
    table = candidates(options.candidate_table, run.released_from)
    whole = run.mechanism in (None, "gaussian")
    units = ranking(table, None if whole else run.level, None if whole else run.ratio, run.score, bounds)
    return saliency_release(images, options.saliency_expected_batch_size, units, run.mechanism or "none", run.sigma_s, delta)


def dp_sgd_release(sigma: float | None, images: int, options: PlanPrivacy) -> Release:
    """Describe DP-SGD: ``steps`` Poisson-subsampled Gaussian releases of clipped gradient sums; exact without sigma."""
    rate = min(options.expected_batch_size / images, 1.0)
    common = {"name": "dp-sgd", "sampling_rate": rate, "steps": options.steps}
    if sigma is None:
        return Release(mechanism="none", sensitivity=None, **common)
    return Release(noise_multiplier=sigma, sensitivity=options.clipping_norm, **common)


def _dp_sgd_noise(saliency: list[Release], run: RunSpec, images: int, delta: float, options: PlanPrivacy) -> float | None:
    if run.epsilon is None:
        return None
    return calibrate(run.epsilon, delta, lambda sigma: [*saliency, dp_sgd_release(sigma, images, options)])


def check_axes(run: RunSpec) -> None:
    """Check that a run has exactly the axes that its method uses.

    Raises:
        UserError: names the first axis that is missing or superfluous, or an epsilon below the accountants' resolution.
    """
    uses = method(run.method).uses
    for axis in sorted(AXES):
        value = getattr(run, axis)
        if axis in uses and value is None:
            raise UserError(axis, value, f"method {run.method} needs it")
        if axis not in uses and value is not None:
            raise UserError(axis, value, f"method {run.method} does not use it; leave it out")
    if run.epsilon is not None and run.epsilon <= MARGIN:
        raise UserError("epsilon", run.epsilon, f"must be greater than {MARGIN}, the accountants' resolution")
