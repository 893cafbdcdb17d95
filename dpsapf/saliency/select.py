"""select-matrices: which matrices a run trains on. Post-processing of released scores: it costs nothing."""

import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import (
    BLOCK,
    CANDIDATES,
    FRAGILITY_SHRUNK,
    LAYER,
    LORA_PARAMETERS,
    MATRIX,
    NOISE_ENERGY,
    PARAMETERS,
    PREDICTED_RISE,
    RANK,
    RISE_DIGITS,
    SCORE,
    SELECTED,
    SIGNAL_ENERGY,
)
from dpsapf.experiment.methods import FRAGILITY, MEMBERS, TOLERATED_RISE, WEIGHS_NOISE, Candidates, Level, method
from dpsapf.experiment.records import Plan, Selection
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import SelectMatrices
from dpsapf.optimization.noise_walk import level_ranks, noise_walk
from dpsapf.privacy.kept import AGAIN, source
from dpsapf.privacy.mechanisms import Ranking
from dpsapf.saliency.noise_aware import affordable_count, best_count, by_worth, noise_energy, signal_energy
from dpsapf.saliency.scores import Bounds, score
from dpsapf.support.errors import UserError
from dpsapf.support.files import copied, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import numpy_generator
from dpsapf.support.records import read_record, write_record
from dpsapf.support.tables import write_table

LOG = logging.getLogger(__name__)
UNITS: dict[str, str] = {"matrix": MATRIX, "layer": LAYER, "block": BLOCK}


def select_matrices(options: SelectMatrices) -> None:
    """Write selection.csv, the candidate table with released scores and a ``selected`` column; and selection.json.

    A selection by which weights were released with real noise stays as it was (`dpsapf.privacy.kept`).

    Raises:
        UserError: the run selects by scores, or by fragilities, and none are given, or they are of other candidates; or it
            was released by a selection from other scores.
    """
    plan = read_record(options.plan, Plan)
    run = plan.run
    table = candidates(options.candidate_table, run.released_from)
    columns = [*table, *selection_columns(run)]
    table[SCORE] = _scores(options, table, run)
    if run.rule in WEIGHS_NOISE:
        table = weighed(table, plan, options)
    table[SELECTED] = chosen(table, run)
    if run.lora_rank == "auto":
        table[RANK] = ranks(table, plan, options)
    LOG.info("%s: %d of %d matrices", run.id, table[SELECTED].sum(), len(table))
    if kept := source("selection.csv", options.out.parent, run.id):
        _check_scores(table, kept, run)
        copied(kept, options.out)
        LOG.info("%s was trained by a selection, which is put back: %s", run.id, kept)
    else:
        write_table(options.out, table, columns)
    scores = sha256(options.scores) if run.scored_dataset else None
    write_record(options.record, Selection(run=run, scores=scores, digest=sha256(options.out), provenance=provenance()))


def _check_scores(table: pd.DataFrame, kept: Path, run: RunSpec) -> None:
    """Check that a selection by which weights were released is of the scores that are here."""
    found, before = (pd.read_csv(text, dtype=str)[[MATRIX, SCORE]] for text in (io.StringIO(table.to_csv(index=False)), kept))
    if not found.equals(before):
        remedy = f"were released again since {run.id} was trained by others: put those back from a copy, {AGAIN}"
        raise UserError("--scores", run.scores_id, remedy)


def selection_columns(run: RunSpec) -> list[str]:
    """Name what a run's selection.csv has beside the candidate table's columns."""
    weighed = [SIGNAL_ENERGY, PREDICTED_RISE] if run.rule == "noise-budget" else [SIGNAL_ENERGY, NOISE_ENERGY, FRAGILITY_SHRUNK]
    return [SCORE, *(weighed if run.rule in WEIGHS_NOISE else []), SELECTED, *[RANK] * (run.lora_rank == "auto")]


def candidates(path: Path, names: Candidates) -> pd.DataFrame:
    """Read the rows of a candidate table that belong to a candidate set, in the denoiser's order.

    Raises:
        UserError: the public model's family does not know the set.
    """
    table = pd.read_csv(path, float_precision="round_trip")
    known = set(table[CANDIDATES])
    if names not in known:
        remedy = f"the public model's table has {', '.join(sorted(known))} alone: its family knows no other per-image gradients"
        raise UserError("candidates", names, remedy)
    return table[table[CANDIDATES].isin(MEMBERS[names])].reset_index(drop=True)


def chosen(table: pd.DataFrame, run: RunSpec) -> pd.Series:
    """Mark the matrices that a run trains on: all, random units, or units chosen by scores and the run's rule, if it has one."""
    selection = method(run.method).selection
    if selection == "all":
        return pd.Series(True, index=table.index)
    if selection == "random" or run.rule == "random":
        return random_units(table, run)
    if run.rule in WEIGHS_NOISE:
        return worthwhile_units(table, run)
    if run.rule == "gap" and run.ratio is None:
        return top_units(table, run.level, gap_ratio(table, run.level))
    scored = table.assign(**{SCORE: -table[SCORE]}) if run.rule == "least" else table
    return top_units(scored, run.level, run.ratio)


def gap_ratio(table: pd.DataFrame, level: Level) -> float:
    """Return the ratio up to the largest gap between neighbouring score sums of units (Zhu and Wang 2022)."""
    sums = np.sort(table.groupby(UNITS[level], sort=False)[SCORE].sum())[::-1]
    return (1 + int(np.argmax(sums[:-1] - sums[1:]))) / len(sums) if len(sums) > 1 else 1.0


def worthwhile_units(table: pd.DataFrame, run: RunSpec) -> pd.Series:
    """Mark every matrix of the units that are worth their noise, see `dpsapf.saliency.noise_aware`.

    Args:
        table: with signal energy, and the predicted rise (rule ``noise-budget``) or noise energy and fragility.
        run: its level says what is a unit, its ratio what share of them is kept; None: as many as its rule finds.
    """
    budget, gain = run.rule == "noise-budget", table[SIGNAL_ENERGY]
    cost = table[PREDICTED_RISE] if budget else table[FRAGILITY_SHRUNK] * (gain + table[NOISE_ENERGY])
    units = pd.DataFrame({"gain": gain, "cost": cost}).groupby(table[UNITS[run.level]], sort=False).sum()
    gains, costs = units["gain"].to_numpy(), units["cost"].to_numpy()
    if run.ratio is not None:
        count = kept(run.ratio, len(units))
    else:
        count = affordable_count(gains, costs, TOLERATED_RISE) if budget else best_count(gains, costs)
    return table[UNITS[run.level]].isin(units.index[by_worth(gains, costs)[:count]])


def weighed(table: pd.DataFrame, plan: Plan, options: SelectMatrices) -> pd.DataFrame:
    """Add each matrix' signal energy, and noise energy and fragility, 1 for rule ``equal-curvature``; or the predicted rise.

    Raises:
        UserError: rule ``noise-aware`` or ``noise-budget`` has no fragilities, or those of other candidates; or the latter
            no learning rate.
    """
    saliency, trained = (next(release for release in plan.releases if release.name == name) for name in ("saliency", "dp-sgd"))
    signal = signal_energy(table[SCORE].to_numpy(), saliency, plan.population)
    if plan.run.rule == "noise-budget":
        rises = [float(f"{rise:.{RISE_DIGITS}g}") for rise in _rises(table, plan, options)]
        return table.assign(**{SIGNAL_ENERGY: signal, PREDICTED_RISE: rises})
    adapted = plan.run.adapter_rank(options.lora_rank) * table[LORA_PARAMETERS]
    parameters = adapted if plan.run.adapter else table[PARAMETERS]
    fragility = _column(options.fragility, "--fragility", FRAGILITY_SHRUNK, table) if plan.run.rule == "noise-aware" else 1.0
    return table.assign(
        **{
            SIGNAL_ENERGY: signal,
            NOISE_ENERGY: noise_energy(parameters.to_numpy(), trained, plan.population),
            FRAGILITY_SHRUNK: fragility,
        }
    )


def ranks(table: pd.DataFrame, plan: Plan, options: SelectMatrices) -> pd.Series:
    """Find the rank of each selected matrix, see `dpsapf.optimization.noise_walk.level_ranks`; 0 for the others.

    Raises:
        UserError: there are no fragilities, or those of other candidates, or no learning rate.
    """
    selected = table[table[SELECTED]]
    found = level_ranks(_rises(selected, plan, options), options.lora_rank)
    return pd.Series(found, index=selected.index).reindex(table.index, fill_value=0)


def _rises(table: pd.DataFrame, plan: Plan, options: SelectMatrices) -> np.ndarray:
    rate = plan.run.learning_rate if isinstance(plan.run.learning_rate, float) else options.learning_rate
    if rate is None:
        what = "rule noise-budget" if plan.run.rule == "noise-budget" else "rank auto"
        raise UserError("--learning-rate", None, f"{what} asks what noise breaks at a learning rate: give one")
    return noise_walk(options.fragility, table, plan, options).rises(rate)


def top_units(table: pd.DataFrame, level: Level, ratio: float) -> pd.Series:
    """Mark every matrix of the units with the highest score sums: `kept` of them; ties by position."""
    sums = table.groupby(UNITS[level], sort=False)[SCORE].sum()
    best = sums.index[sums.rank(ascending=False, method="first") <= kept(ratio, len(sums))]
    return table[UNITS[level]].isin(best)


def random_units(table: pd.DataFrame, run: RunSpec) -> pd.Series:
    """Mark every matrix of uniformly random units, others for each dataset and seed; as many as a selection would keep."""
    units = table[UNITS[run.level]].unique()
    draws = numpy_generator(run.seed, "random selection", run.dataset)
    return table[UNITS[run.level]].isin(draws.choice(units, kept(run.ratio, len(units)), replace=False))


def ranking(table: pd.DataFrame, level: Level | None, ratio: float | None, score_name: str, bounds: Bounds) -> Ranking:
    """Describe what is ranked, for a mechanism's plan and release.

    Args:
        table: candidate table.
        level: units; None: matrices.
        ratio: share of units that is kept; None: all, for noisy scores from which any ratio can be selected.
        score_name: key of the score registry.
        bounds: what limits an image's contribution.
    """
    units = pd.factorize(table[UNITS[level or "matrix"]])[0]
    row = score(score_name)
    return Ranking(
        unit_of=units,
        kept=kept(ratio or 1.0, units.max() + 1),
        sensitivity=row.sensitivity(bounds),
        unit_sensitivity=row.unit_sensitivity and row.unit_sensitivity(bounds, int(pd.Series(units).value_counts().max())),
    )


def _scores(options: SelectMatrices, table: pd.DataFrame, run: RunSpec) -> list[float] | None:
    if run.proxy == FRAGILITY:
        return _column(options.fragility, "--fragility", FRAGILITY_SHRUNK, table)
    return _column(options.scores, "--scores", SCORE, table) if run.scored_dataset else None


def _column(path: Path | None, flag: str, column: str, table: pd.DataFrame) -> list[float]:
    if path is None:
        stage = {"--scores": "score-saliency", "--fragility": "measure-fragility"}[flag]
        raise UserError(flag, None, f"the plan's method and rule select by it: run {stage} first")
    values = pd.read_csv(path, float_precision="round_trip")
    if values[MATRIX].tolist() != table[MATRIX].tolist():
        raise UserError(flag, str(path), "holds other matrices than --candidate-table: use one public model")
    return values[column].tolist()


def kept(ratio: float, candidates: int) -> int:
    """Return how many of the candidates a ratio keeps: the nearest integer, halves up, at least 1."""
    return max(1, int(ratio * candidates + 0.5 + 1e-9))
