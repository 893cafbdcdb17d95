"""collect-metrics, collect-external: one run's records become metrics.json; records that do not belong together are refused."""

import logging
from pathlib import Path

import pandas as pd

from dpsapf.experiment.columns import FIDELITY, MATRIX, SELECTED
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import (
    CLAIMED,
    External,
    Fidelity,
    Ledger,
    Measured,
    Metrics,
    Plan,
    Release,
    Spend,
    Timing,
    Utility,
)
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import CollectExternal, CollectMetrics
from dpsapf.finetune.weights import read_header
from dpsapf.optimization.noise_walk import noise_walk
from dpsapf.saliency.select import candidates
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)


def collect_metrics(options: CollectMetrics) -> None:
    """Write metrics.json: what a run spent, what it cost and how its images score.

    Raises:
        UserError: a record is missing, of another run, or of another evaluation protocol.
    """
    metrics = gather(options)
    write_record(options.out, metrics)
    LOG.info("%s: accuracy %.1f %%, FID %.2f", metrics.run_id, 100 * metrics.accuracy, metrics.fid)


def gather(options: CollectMetrics) -> Metrics:
    """Read and check a run's records; returns its metrics without writing them.

    Raises:
        UserError: as `collect_metrics`.
    """
    plan, ledger = read_plan_and_ledger(options.plan, options.ledger)
    spend = read_spend(options, ledger)
    timing, measured = read_timing(options), read_record(options.private, Measured) if spend else None
    return Metrics(
        run_id=plan.run.id,
        run=plan.run,
        **scores(options),
        target_epsilon=plan.target_epsilon,
        delta=ledger.delta if ledger.releases else None,
        spent_epsilon=ledger.spent_epsilon,
        not_for_release=ledger.not_for_release,
        selection_epsilon=plan.selection_epsilon,
        noise_multiplier=spend.release.noise_multiplier if spend else None,
        noise_multiplier_without_selection=plan.dp_sgd_noise_alone,
        used_learning_rate=peak_learning_rate(options.training_log) if options.training_log else None,
        predicted_rise=predicted_rise(options, plan, ledger) if spend and options.fragility else None,
        used_steps=spend.release.steps if spend else None,
        used_batch=spend.release.sampling_rate * spend.population if spend else None,
        trainable_parameters=spend.trainable_parameters if spend else 0,
        selected_matrices=count_selected(options, plan.run),
        finetune_seconds=measured.seconds if measured else None,
        sample_seconds=timing.seconds,
        peak_memory_mb=max(timing.peak_memory_mb, measured.peak_memory_mb if measured else 0.0),
    )


def collect_external(options: CollectExternal) -> None:
    """Write metrics.json of images that another group made: how they score, and that their epsilon is claimed only.

    Raises:
        UserError: a record is missing or of another evaluation protocol.
    """
    external = read_record(options.external, External)
    unknown = ("selection_epsilon", "noise_multiplier", "noise_multiplier_without_selection", "used_learning_rate", "used_steps")
    unknown += ("used_batch", "trainable_parameters", "selected_matrices", "finetune_seconds", "sample_seconds", "peak_memory_mb")
    metrics = Metrics(
        run_id=external.run.id,
        run=external.run,
        **scores(options),
        target_epsilon=external.claimed_epsilon,
        delta=external.claimed_delta,
        spent_epsilon={},
        not_for_release=f"made elsewhere: its epsilon is {CLAIMED}",
        label=external.label,
        claim=external.claim,
        **dict.fromkeys(unknown),
    )
    write_record(options.out, metrics)
    LOG.info("%s: accuracy %.1f %%, FID %.2f; epsilon %s", metrics.run_id, 100 * metrics.accuracy, metrics.fid, metrics.claim)


def scores(options: CollectMetrics | CollectExternal) -> dict[str, object]:
    """Return the fields of `Metrics` that come from the evaluation.

    Raises:
        UserError: as `read_evaluation`.
    """
    fidelity, utility, ceiling = read_evaluation(options)
    of_fidelity = ("protocol", "protocol_digest", "reference", "synthetic_images", "real_images", *FIDELITY)
    of_utility = ("accuracy", "macro_f1", "calibration_error", "per_classifier")
    return {
        **{name: getattr(fidelity, name) for name in of_fidelity},
        **{name: getattr(utility, name) for name in of_utility},
        "ceiling_accuracy": ceiling.accuracy,
    }


def read_plan_and_ledger(plan_path: Path, ledger_path: Path) -> tuple[Plan, Ledger]:
    """Read the plan and the audit's ledger of one run.

    Raises:
        UserError: they are of different runs.
    """
    plan, ledger = read_record(plan_path, Plan), read_record(ledger_path, Ledger)
    if ledger.run != plan.run:
        raise UserError("--ledger", ledger.run.id, f"is another run than the plan's {plan.run.id}; audit this plan")
    return plan, ledger


def read_spend(options: CollectMetrics, ledger: Ledger) -> Spend | None:
    """Read the spend record of DP-SGD, or of votes; None for a method that neither trains nor evolves.

    Raises:
        UserError: the record or the training log is missing, unfinished, or not what the ledger audited.
    """
    row = method(ledger.run.method)
    if not row.spends:
        return None
    for name in ("spend", "private", "training_log")[: 3 if row.trains else 2]:
        if getattr(options, name) is None:
            flag, what = "--" + name.replace("_", "-"), "trains" if row.trains else "evolves images"
            raise UserError(flag, None, f"method {ledger.run.method} {what}: give the record of that stage")
    spend = read_record(options.spend, Spend)
    if spend.release not in ledger.releases or spend.digest != ledger.released_digest:
        raise UserError("--spend", str(options.spend), f"is not what the ledger of {ledger.run.id} audited; audit again")
    if row.trains:
        _check_log(options.training_log, spend.release)
    return spend


def read_timing(options: CollectMetrics) -> Timing:
    """Read what sampling cost.

    Raises:
        UserError: the images were drawn under another ledger.
    """
    timing = read_record(options.timing, Timing)
    if timing.ledger != sha256(options.ledger):
        raise UserError("--timing", str(options.timing), f"was drawn under another ledger than {options.ledger}; sample again")
    return timing


def peak_learning_rate(log: Path) -> float:
    """Read the peak learning rate off the per-step log: every schedule starts at it. It is a setting, not private."""
    return float(pd.read_csv(log)["learning_rate"].iloc[0])


def predicted_rise(options: CollectMetrics, plan: Plan, ledger: Ledger) -> float:
    """Return what noise alone breaks in the run, from settings and the public model: not private.

    Raises:
        UserError: the weights, whose header has the settings, are missing or not the audited ones.
    """
    if options.weights is None or sha256(options.weights) != ledger.weights_digest:
        given = options.weights and str(options.weights)
        raise UserError("--weights", given, f"with --fragility, must be the weights that the audit of {ledger.run.id} passed")
    selection = pd.read_csv(options.selection)
    walk = noise_walk(options.fragility, selection[selection[SELECTED]], plan, read_header(options.weights))
    return float(walk.rises(peak_learning_rate(options.training_log)).sum())


def _check_log(path: Path, release: Release) -> None:
    rows = len(pd.read_csv(path))
    if rows != release.steps:
        raise UserError("--training-log", str(path), f"has {rows} steps, the spend record {release.steps}; run finetune again")


def read_evaluation(options: CollectMetrics | CollectExternal) -> tuple[Fidelity, Utility, Utility]:
    """Read fidelity, utility and the ceiling (classifiers trained on real images).

    Raises:
        UserError: they are of different protocols, or utility and ceiling are swapped.
    """
    fidelity = read_record(options.fidelity, Fidelity)
    records = {"utility": ("synthetic", read_record(options.utility, Utility))}
    records["ceiling"] = ("real", read_record(options.ceiling, Utility))
    for name, (trained_on, record) in records.items():
        if record.protocol != fidelity.protocol:
            raise UserError(f"--{name}", record.protocol, f"the protocol of --fidelity is {fidelity.protocol}; evaluate with one")
        if record.protocol_digest != fidelity.protocol_digest:
            remedy = f"{fidelity.protocol} had the meaning {fidelity.protocol_digest} for --fidelity; evaluate both again"
            raise UserError(f"--{name}: protocol_digest", record.protocol_digest, remedy)
        if record.trained_on != trained_on:
            raise UserError(f"--{name}", record.trained_on, f"must come from classifiers trained on {trained_on} images")
    return fidelity, records["utility"][1], records["ceiling"][1]


def count_selected(options: CollectMetrics, run: RunSpec) -> int:
    """Count the matrices that the run selected; 0 if it has no selection.

    Raises:
        UserError: the selection is of other matrices than the public model's candidates.
    """
    if options.selection is None:
        return 0
    selection, known = pd.read_csv(options.selection), candidates(options.candidate_table, run.released_from)
    if selection[MATRIX].tolist() != known[MATRIX].tolist():
        raise UserError(
            "--selection", str(options.selection), "holds other matrices than --candidate-table: use one public model"
        )
    return int(selection[SELECTED].sum())
