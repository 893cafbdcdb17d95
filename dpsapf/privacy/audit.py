"""audit-privacy: compose what was released, from what was measured, and let no image exist otherwise."""

import logging
import math
from pathlib import Path

from dpsapf.experiment.columns import CERTIFIERS
from dpsapf.experiment.methods import NoiseMode
from dpsapf.experiment.records import Ledger, Measured, Plan, Release, Selection, Spend
from dpsapf.experiment.settings import AuditConfig
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy.accounting import finite, spent_epsilon
from dpsapf.privacy.evidence import check_measures
from dpsapf.privacy.leaving import check_leaving
from dpsapf.support.errors import UserError
from dpsapf.support.files import copied, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.records import lasting, read_record, write_record

LOG = logging.getLogger(__name__)
SAME = 1e-4  # share by which an epsilon may differ from the planned one: other machines round otherwise
KEPT = "ledgers"  # folder beside ledger.json: of each passed audit its ledger, by what was released


def audit_privacy(options: AuditPrivacy) -> None:
    """Write ledger.json if and only if what was released is what was planned, within the target (see `verdict`).

    What was spent stays on record: a copy for each digest that was released, which no later audit removes. With real noise a
    second audit of the same release that finds the same writes the same bytes.
    """
    ledger = verdict(options)
    LOG.info("%s: spent %s of epsilon %s", ledger.run.id, ledger.spent_epsilon, ledger.target_epsilon)
    kept, name = options.out.parent / KEPT, (ledger.released_digest or ledger.dataset_id)[:12]
    if ledger.noise == "system":
        copied(lasting(kept, name, ledger), options.out)
        return
    if ledger.released_digest:
        write_record(kept / f"{name}.json", ledger)
    write_record(options.out, ledger)


def verdict(options: AuditPrivacy) -> Ledger:
    """Return what the audit finds, if what was released is what was planned, within the target.

    Raises:
        UserError: a release is missing, unplanned, of another run, on other data, noisier in plan than in fact; a file
            is not what its record says, or holds more than its release (`dpsapf.privacy.leaving`); what was measured
            contradicts the release; or the composed epsilon exceeds the target under PLD or PRV.
    """
    plan = read_record(options.plan, Plan)
    spends = [read_record(path, Spend) for path in options.spends]
    check_against_plan(plan, spends, options.spends)
    check_chain(plan, spends, options)
    check_leaving(plan, {spend.release.name: spend for spend in spends}, options)
    for spend, path in zip(spends, options.privates, strict=True):
        check_measures(spend, read_record(path, Measured), path)
    releases = tuple(spend.release for spend in spends)
    spent = {}
    if plan.target_epsilon is not None:
        spent = spent_epsilon((*plan.prior, *releases), plan.delta)
        check_target(plan, spent)
    settings = AuditConfig(**{key: getattr(options, key) for key in AuditConfig.model_fields})
    ledger = _ledger(plan, spends, spent, settings)
    check_ledger(ledger, plan)
    return ledger


def check_ledger(ledger: Ledger, plan: Plan) -> None:
    """Check a ledger against its plan: delta, releases, and the epsilon that was planned of them at that delta.

    Raises:
        UserError: names the key that differs.
    """
    for key in ("run", "unit", "target_epsilon", "delta", "dataset_id", "prior"):
        if getattr(ledger, key) != getattr(plan, key):
            raise UserError(f"ledger: {key}", getattr(ledger, key), f"the plan has {getattr(plan, key)}: a defect, report it")
    for name, planned in plan.planned_epsilon.items():
        spent = ledger.spent_epsilon.get(name, math.inf)
        if math.isfinite(planned) and not math.isclose(spent, planned, rel_tol=SAME):
            remedy = f"the same releases were planned to compose to {planned}: plan the run again with this version"
            raise UserError(f"ledger: {name} epsilon", spent, remedy)


def _ledger(plan: Plan, spends: list[Spend], spent: dict[str, float], settings: AuditConfig) -> Ledger:
    by_name = {spend.release.name: spend for spend in spends}
    digests = {"scores": by_name["saliency"].digest} if "saliency" in by_name else {}
    if "dp-sgd" in by_name:
        digests |= {name: by_name["dp-sgd"].made_from[name] for name in ("model", "latents", "selection")}
    if "pe-histogram" in by_name:
        digests["population"] = by_name["pe-histogram"].digest
    return Ledger(
        run=plan.run,
        target_epsilon=plan.target_epsilon,
        delta=plan.delta,
        relation=plan.relation,
        unit=plan.unit,
        noise=plan.noise,
        not_for_release=not_for_release(plan, tuple(by_name.values())),
        dataset_id=plan.dataset_id,
        prior=plan.prior,
        prior_keys=plan.prior_keys,
        releases=tuple(spend.release for spend in spends),
        spent_epsilon=finite(spent),
        digests=digests,
        weights_digest=by_name["dp-sgd"].digest if "dp-sgd" in by_name else None,
        held_against=settings if spends else None,
        provenance=provenance(),
    )


def not_for_release(plan: Plan, spends: tuple[Spend, ...]) -> str | None:
    """Say why nothing of a run may be published as private, or None: it may."""
    if plan.without_guarantee:
        return plan.without_guarantee
    if any(release.noise == "seed" for release in (spend.release for spend in spends)):
        return "noise from a seed, which whoever knows it can subtract: set privacy.noise to system"
    if spends and plan.target_epsilon is None:
        return "no guarantee: epsilon is infinite"
    return None


def check_against_plan(plan: Plan, spends: list[Spend], paths: tuple[Path, ...]) -> None:
    """Compare the spend records with the plan, release by release.

    Raises:
        UserError: names the record and the first key that differs.
    """
    planned = {release.name: release for release in plan.releases}
    spent = [spend.release.name for spend in spends]
    if sorted(spent) != sorted(planned):
        raise UserError("releases", spent, f"the plan of {plan.run.id} has {sorted(planned)}; every release once")
    subjects = {"saliency": plan.run.scores_id, "dp-sgd": plan.run.id, "pe-histogram": plan.run.id}
    for spend, path in zip(spends, paths, strict=True):
        if spend.subject != subjects[spend.release.name]:
            raise UserError(f"{path}: subject", spend.subject, f"the plan is of {subjects[spend.release.name]}")
        _check_release(planned[spend.release.name], spend.release, path)
        if (spend.unit, spend.population) != (plan.unit, plan.population) or spend.dataset_id != plan.dataset_id:
            raise UserError(str(path), spend.dataset_id[:12], f"made on other data than the plan's {plan.dataset_id[:12]}")


def _check_release(planned: Release, spent: Release, path: Path) -> None:
    for key in Release.model_fields:
        if getattr(planned, key) != getattr(spent, key):
            raise UserError(f"{path}: {key}", getattr(spent, key), f"the plan has {getattr(planned, key)}; run the stage again")


def check_chain(plan: Plan, spends: list[Spend], options: AuditPrivacy) -> None:
    """Walk from the latents over scores and selection to the weights, or from the plan to the evolved population.

    Each file is the one that the next was made from.

    Raises:
        UserError: names the first file whose digest is another.
    """
    if len(options.privates) != len(spends):
        raise UserError("--privates", len(options.privates), f"must be one for each of the {len(spends)} spend records")
    for spend, private in zip(spends, options.privates, strict=True):
        _unchanged("--privates", private, spend.private, plan.noise)
    by_name = {spend.release.name: spend for spend in spends}
    scores, trained = by_name.get("saliency") or proxy_scores(plan, options), by_name.get("dp-sgd")
    if scores:
        _unchanged("--scores", options.scores, scores.digest, plan.noise)
    if trained:
        _check_trained(plan, scores, trained, options)
    if "pe-histogram" in by_name:
        _same("--plan", sha256(options.plan), by_name["pe-histogram"].made_from["plan"])
        _unchanged("--population", options.population, by_name["pe-histogram"].digest, plan.noise)


def proxy_scores(plan: Plan, options: AuditPrivacy) -> Spend | None:
    """Read the record of another dataset's scores, by which a run selects; None if it selects otherwise.

    Raises:
        UserError: it is missing, of other scores than the plan's, or of the private images.
    """
    run = plan.run
    if run.scored_dataset in (None, run.dataset):
        return None
    if options.proxy_spend is None:
        raise UserError("--proxy-spend", None, f"{run.id} selects by scores of {run.proxy}: give their spend.json")
    spend = read_record(options.proxy_spend, Spend)
    told = {"subject": (spend.subject, run.scores_id), "dataset_id": (spend.dataset_id, plan.proxy_id)}
    for key, (found, due) in told.items():
        if found != due:
            raise UserError(f"{options.proxy_spend}: {key}", found, f"the plan selects by scores of {due}: plan and score again")
    if spend.dataset_id == plan.dataset_id:
        raise UserError(
            str(options.proxy_spend), spend.dataset_id[:12], "are scores of the private images: they were not planned"
        )
    return spend


def _check_trained(plan: Plan, scores: Spend | None, trained: Spend, options: AuditPrivacy) -> None:
    if options.selection_record is None:
        raise UserError("--selection-record", None, f"{plan.run.method} trains what a selection names: give selection.json")
    selection = read_record(options.selection_record, Selection)
    if selection.run != plan.run:
        raise UserError("--selection-record", selection.run.id, f"is of another run than the plan's {plan.run.id}")
    _same("--selection-record: scores", selection.scores, scores and scores.digest)
    _unchanged("--selection", options.selection, selection.digest, plan.noise)
    _same("--selection", selection.digest, trained.made_from["selection"])
    _same("--plan", sha256(options.plan), trained.made_from["plan"])
    _unchanged("--weights", options.weights, trained.digest, plan.noise)
    if scores:
        for name in ("latents", "model") if plan.run.selects else ("model",):
            _same(f"{name} of the scores", scores.made_from[name], trained.made_from[name])
        _unchanged("--candidate-table", options.candidate_table, scores.made_from.get("candidate_table", ""), plan.noise)
    _unchanged("--model", options.model, trained.made_from["model"], plan.noise)


def _unchanged(option: str, path: Path | None, recorded: str, noise: NoiseMode) -> None:
    """Check that a file is still the one that the record of its stage names.

    Raises:
        UserError: it is missing among the options, or it is another; says how to mend it.
    """
    if path is None:
        raise UserError(option, None, f"give the file whose digest is {recorded[:12]}")
    found = sha256(path)
    if found == recorded:
        return
    again = {
        "seed": "makes it and what follows anew (noise from a seed comes out the same)",
        "system": "puts it back (what was released with real noise is kept, and not made again)",
    }[noise]
    told = (
        f"is not the file that was recorded, {recorded[:12]}: it was changed or cut off after it was written. Put it back from a"
    )
    raise UserError(str(path), found[:12], f"{told} copy; or delete it and run the same command again, which {again}")


def _same(what: str, found: str | None, recorded: str | None) -> None:
    if found != recorded:
        raise UserError(
            what, found and found[:12], f"the records say {recorded and recorded[:12]}: run the stages after it again"
        )


def check_target(plan: Plan, spent: dict[str, float]) -> None:
    """Check the composed epsilon of every certifying accountant against the target.

    Raises:
        UserError: names the accountant and what it composes to; what is no number exceeds every target.
    """
    for name in CERTIFIERS:
        if not (math.isfinite(spent[name]) and spent[name] <= plan.target_epsilon):
            raise UserError(f"{name} epsilon", spent[name], f"exceeds the target {plan.target_epsilon} of {plan.run.id}")
