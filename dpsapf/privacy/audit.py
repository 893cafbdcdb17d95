"""audit-privacy: compose what was released, from the spend records, and let no image exist otherwise."""

import logging
from pathlib import Path

import numpy as np

from dpsapf.experiment.records import Ledger, Plan, Release, Spend
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy.accounting import ACCOUNTANTS, epsilon
from dpsapf.support.errors import UserError
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
CERTIFIERS = ("pld", "prv")  # both must be within the target; rdp is looser, gdp no bound: reported only
UNLIKELY = 1e-9  # a Poisson sampler's batches are rejected by mistake this rarely


def audit_privacy(options: AuditPrivacy) -> None:
    """Write ledger.json if and only if what was released is what was planned, within the target.

    Raises:
        UserError: a release is missing, unplanned, on other data, noisier in plan than in fact, or the
            composed epsilon exceeds the target under PLD or PRV. Nothing is written then.
    """
    plan = read_record(options.plan, Plan)
    spends = [read_record(path, Spend) for path in options.spends]
    check_against_plan(plan, spends, options.spends)
    releases = tuple(spend.release for spend in spends)
    spent = {}
    if plan.target_epsilon is not None:
        spent = {name: epsilon(name, releases, plan.delta) for name in ACCOUNTANTS}
        check_target(plan, spent)
    LOG.info("%s: spent %s of epsilon %s", plan.run.id, spent, plan.target_epsilon)
    write_record(
        options.out,
        Ledger(
            run=plan.run,
            target_epsilon=plan.target_epsilon,
            delta=plan.delta,
            relation=plan.relation,
            unit=plan.unit,
            noise=plan.noise,
            releases=releases,
            spent_epsilon=spent,
            weights_digest=next((s.digest for s in spends if s.release.name == "dp-sgd"), None),
            provenance=provenance(),
        ),
    )


def check_against_plan(plan: Plan, spends: list[Spend], paths: tuple[Path, ...]) -> None:
    """Compare the spend records with the plan, release by release.

    Raises:
        UserError: names the record and the first key that differs.
    """
    planned = {release.name: release for release in plan.releases}
    spent = [spend.release.name for spend in spends]
    if sorted(spent) != sorted(planned):
        raise UserError("releases", spent, f"the plan of {plan.run.id} has {sorted(planned)}; every release once")
    for spend, path in zip(spends, paths, strict=True):
        _check_release(planned[spend.release.name], spend.release, path)
        if spend.images != plan.images or spend.dataset_sha256 != plan.dataset_sha256:
            raise UserError(
                str(path), spend.dataset_sha256[:12], f"made on other data than the plan's {plan.dataset_sha256[:12]}"
            )
        if len(spend.realised_batches) != spend.release.steps:
            raise UserError(str(path), len(spend.realised_batches), f"must have {spend.release.steps} realised batches")
        _check_batches(spend, path)


def _check_release(planned: Release, spent: Release, path: Path) -> None:
    for key in Release.model_fields:
        if getattr(planned, key) != getattr(spent, key):
            raise UserError(f"{path}: {key}", getattr(spent, key), f"the plan has {getattr(planned, key)}; run the stage again")


def _check_batches(spend: Spend, path: Path) -> None:
    """Test that the realised batches are a Poisson sampler's: sizes Binomial(N, q), by their dispersion and total.

    Batches of one fixed size, as a shuffled loader makes, are not: the accounting would not hold for them.
    """
    from scipy import stats

    sizes, rate = np.array(spend.realised_batches), spend.release.sampling_rate
    mean, variance = spend.images * rate, spend.images * rate * (1 - rate)
    if rate == 1:
        if (sizes != spend.images).any():
            raise UserError(str(path), sizes.tolist(), f"rate 1 takes all {spend.images} images at every step")
        return
    dispersion = ((sizes - mean) ** 2).sum() / variance
    total = stats.binom(spend.images * len(sizes), rate)
    widest = ((abs(sizes - mean) + 0.5) ** 2).sum() / variance  # sizes are whole numbers: a step may hit the mean exactly
    chances = (stats.chi2.cdf(widest, len(sizes)), stats.chi2.sf(dispersion, len(sizes)))
    chances += (total.cdf(sizes.sum()), total.sf(sizes.sum() - 1))
    if min(chances) < UNLIKELY:
        remedy = f"are no Poisson sample of {spend.images} images at rate {rate:.4g}; run the stage again"
        raise UserError(f"{path}: realised_batches", sizes[:5].tolist(), remedy)


def check_target(plan: Plan, spent: dict[str, float]) -> None:
    """Check the composed epsilon of every certifying accountant against the target.

    Raises:
        UserError: names the accountant and what it composes to.
    """
    for name in CERTIFIERS:
        if spent[name] > plan.target_epsilon:
            raise UserError(f"{name} epsilon", spent[name], f"exceeds the target {plan.target_epsilon} of {plan.run.id}")
