"""plan-privacy: fix every release of a run, and the noise that meets its target, before anything is computed."""

import logging
import math

from dpsapf.commands import PlanPrivacy
from dpsapf.errors import UserError
from dpsapf.formats import DatasetRecord, Plan, Release
from dpsapf.methods import method
from dpsapf.privacy.accounting import MARGIN, RELATION, UNIT, calibrate, pld_epsilon, rdp_epsilon
from dpsapf.records import provenance, read_record, write_record
from dpsapf.runs import RunSpec

LOG = logging.getLogger(__name__)
PUBLIC = (
    "N, the number of training images",
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
    run = RunSpec(
        dataset=dataset.name,
        public_model=options.public_model,
        method=options.method,
        level=options.level,
        ratio=options.ratio,
        sigma_s=options.sigma_s,
        epsilon=options.epsilon,
        seed=options.seed,
    )
    _check_axes(run)
    write_record(options.out, make_plan(run, dataset, options))


def make_plan(run: RunSpec, dataset: DatasetRecord, options: PlanPrivacy) -> Plan:
    """Calibrate a run's releases; returns the plan without writing it.

    Raises:
        UserError: the target cannot be met.
    """
    delta = options.delta or default_delta(dataset.train)
    saliency = [saliency_release(run, dataset.train, options)] if method(run.method).selects else []
    alone = _dp_sgd_noise([], run, dataset.train, delta, options)
    sigma = _dp_sgd_noise(saliency, run, dataset.train, delta, options) if saliency else alone
    releases = [*saliency, *([dp_sgd_release(sigma, dataset.train, options)] if sigma else [])]
    LOG.info("%s: %d releases, noise multiplier %s (%s without selection)", run.id, len(releases), sigma, alone)
    return Plan(
        run=run,
        images=dataset.train,
        target_epsilon=run.epsilon or 0.0,
        delta=delta,
        relation=RELATION,
        unit=UNIT,
        public=PUBLIC,
        clipping=options.clipping,
        clipping_norm=options.clipping_norm,
        releases=tuple(releases),
        planned_epsilon={"pld": pld_epsilon(releases, delta), "rdp": rdp_epsilon(releases, delta)},
        selection_epsilon=pld_epsilon(saliency, delta) if saliency else None,
        dp_sgd_noise_alone=alone,
        dataset_sha256=dataset.sha256,
        provenance=provenance(),
    )


def default_delta(images: int) -> float:
    """Return the paper's delta, 1/(N ln N), for N training images (N >= 2)."""
    return 1 / (images * math.log(images))


def saliency_release(run: RunSpec, images: int, options: PlanPrivacy) -> Release:
    """Describe the saliency release: scores are squared norms, so clipping at C_s gives sensitivity C_s^2."""
    rate = min(options.saliency_expected_batch_size / images, 1.0)
    return Release(
        name="saliency",
        noise_multiplier=run.sigma_s,
        sensitivity=options.saliency_clipping_norm**2,
        sampling_rate=rate,
        steps=1,
    )


def dp_sgd_release(sigma: float, images: int, options: PlanPrivacy) -> Release:
    """Describe DP-SGD: ``steps`` Poisson-subsampled Gaussian releases of clipped gradient sums."""
    rate = min(options.expected_batch_size / images, 1.0)
    return Release(
        name="dp-sgd",
        noise_multiplier=sigma,
        sensitivity=options.clipping_norm,
        sampling_rate=rate,
        steps=options.steps,
    )


def _dp_sgd_noise(saliency: list[Release], run: RunSpec, images: int, delta: float, options: PlanPrivacy) -> float | None:
    if not method(run.method).trains:
        return None
    return calibrate(run.epsilon, delta, lambda sigma: [*saliency, dp_sgd_release(sigma, images, options)])


def _check_axes(run: RunSpec) -> None:
    row = method(run.method)
    needed = {"level": row.selects, "ratio": row.selects, "sigma_s": row.selects, "epsilon": row.trains}
    for axis, is_needed in needed.items():
        value = getattr(run, axis)
        if is_needed and value is None:
            raise UserError(axis, value, f"method {run.method} needs it")
        if not is_needed and value is not None:
            raise UserError(axis, value, f"method {run.method} does not use it; leave it out")
    if row.trains and run.epsilon <= MARGIN:
        raise UserError("epsilon", run.epsilon, f"must be greater than {MARGIN}, the accountants' resolution")
