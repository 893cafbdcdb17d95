"""select-matrices: which matrices a run trains on. Post-processing of released scores: it costs nothing."""

import logging
from pathlib import Path

import pandas as pd

from dpsapf.commands import SelectMatrices
from dpsapf.errors import UserError
from dpsapf.formats import LAYER, MATRIX, SCORE, SELECTED, Plan
from dpsapf.methods import method
from dpsapf.records import atomic, read_record

LOG = logging.getLogger(__name__)


def select_matrices(options: SelectMatrices) -> None:
    """Write selection.csv: the candidate table with released scores and a ``selected`` column.

    Raises:
        UserError: the method needs scores and none are given, or they are of other candidates.
    """
    plan = read_record(options.plan, Plan)
    table = pd.read_csv(options.candidates)
    table[SCORE] = None
    table[SELECTED] = True
    if method(plan.run.method).selects:
        table[SCORE] = _scores(options, table)
        choose = {"matrix": top_matrices, "layer": top_layers}[plan.run.level]
        table[SELECTED] = choose(table, plan.run.ratio)
    LOG.info("%s: %d of %d matrices", plan.run.id, table[SELECTED].sum(), len(table))
    with atomic(options.out) as temporary:
        table.to_csv(temporary, index=False)


def _scores(options: SelectMatrices, table: pd.DataFrame) -> list[float]:
    if options.scores is None:
        raise UserError("--scores", None, "the plan's method selects by released scores: run score-saliency first")
    scores = pd.read_csv(options.scores)
    if scores[MATRIX].tolist() != table[MATRIX].tolist():
        raise UserError("--scores", str(options.scores), "holds other matrices than --candidates: use one public model")
    return scores[SCORE].tolist()


def top_matrices(table: pd.DataFrame, ratio: float) -> pd.Series:
    """Mark the ``round(ratio * M)`` (at least one) matrices with the highest scores; ties by position."""
    ranks = table[SCORE].rank(ascending=False, method="first")
    return ranks <= kept(ratio, len(table))


def top_layers(table: pd.DataFrame, ratio: float) -> pd.Series:
    """Mark every matrix of the ``round(ratio * L)`` (at least one) attention modules with the highest score sums."""
    ranks = table.groupby(LAYER, sort=False)[SCORE].sum().rank(ascending=False, method="first")
    chosen = ranks.index[ranks <= kept(ratio, len(ranks))]
    return table[LAYER].isin(chosen)


def kept(ratio: float, candidates: int) -> int:
    """Return how many of the candidates a ratio keeps: the nearest integer, halves up, at least 1."""
    return max(1, int(ratio * candidates + 0.5 + 1e-9))


def selected_matrices(path: Path) -> list[str]:
    """Return the names of the selected matrices of a selection.csv, in UNet order."""
    table = pd.read_csv(path)
    return table.loc[table[SELECTED], MATRIX].tolist()
