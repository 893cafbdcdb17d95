"""select-matrices: which matrices a run trains on. Post-processing of released scores: it costs nothing."""

import logging
import typing
from pathlib import Path

import pandas as pd

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX, SCORE, SELECTED
from dpsapf.experiment.methods import Candidates, Level, method
from dpsapf.experiment.records import Plan, Selection
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import SelectMatrices
from dpsapf.privacy.mechanisms import Ranking
from dpsapf.saliency.scores import Bounds, score
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import numpy_generator
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)
UNITS: dict[str, str] = {"matrix": MATRIX, "layer": LAYER, "block": BLOCK}


def select_matrices(options: SelectMatrices) -> None:
    """Write selection.csv, the candidate table with released scores and a ``selected`` column; and selection.json.

    Raises:
        UserError: the method needs scores and none are given, or they are of other candidates.
    """
    run = read_record(options.plan, Plan).run
    table = candidates(options.candidate_table, run.released_from)
    table[SCORE] = _scores(options, table) if method(run.method).selects else None
    table[SELECTED] = chosen(table, run)
    LOG.info("%s: %d of %d matrices", run.id, table[SELECTED].sum(), len(table))
    with atomic(options.out) as temporary:
        table.to_csv(temporary, index=False)
    scores = sha256(options.scores) if method(run.method).selects else None
    write_record(options.record, Selection(run=run, scores=scores, digest=sha256(options.out), provenance=provenance()))


def candidates(path: Path, names: Candidates) -> pd.DataFrame:
    """Read the rows of a candidate table that belong to a candidate set, in UNet order."""
    table = pd.read_csv(path)
    sets = typing.get_args(Candidates)
    return table[table[CANDIDATES].isin(sets[: sets.index(names) + 1])].reset_index(drop=True)


def chosen(table: pd.DataFrame, run: RunSpec) -> pd.Series:
    """Mark the matrices that a run trains on: all, random units, or units chosen by released scores and the run's rule."""
    selection = method(run.method).selection
    if selection == "all":
        return pd.Series(True, index=table.index)
    if selection == "random":
        return random_units(table, run.level, run.ratio, run.seed)
    scored = table.assign(**{SCORE: -table[SCORE]}) if run.rule == "least" else table
    return top_units(scored, run.level, run.ratio)


def top_units(table: pd.DataFrame, level: Level, ratio: float) -> pd.Series:
    """Mark every matrix of the units with the highest score sums: `kept` of them; ties by position."""
    sums = table.groupby(UNITS[level], sort=False)[SCORE].sum()
    best = sums.index[sums.rank(ascending=False, method="first") <= kept(ratio, len(sums))]
    return table[UNITS[level]].isin(best)


def random_units(table: pd.DataFrame, level: Level, ratio: float, seed: int) -> pd.Series:
    """Mark every matrix of uniformly random units, as many as a selection would keep; no data, no cost."""
    units = table[UNITS[level]].unique()
    drawn = numpy_generator(seed, "random selection").choice(units, kept(ratio, len(units)), replace=False)
    return table[UNITS[level]].isin(drawn)


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


def _scores(options: SelectMatrices, table: pd.DataFrame) -> list[float]:
    if options.scores is None:
        raise UserError("--scores", None, "the plan's method selects by released scores: run score-saliency first")
    scores = pd.read_csv(options.scores)
    if scores[MATRIX].tolist() != table[MATRIX].tolist():
        raise UserError("--scores", str(options.scores), "holds other matrices than --candidate-table: use one public model")
    return scores[SCORE].tolist()


def kept(ratio: float, candidates: int) -> int:
    """Return how many of the candidates a ratio keeps: the nearest integer, halves up, at least 1."""
    return max(1, int(ratio * candidates + 0.5 + 1e-9))
