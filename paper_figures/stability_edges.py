"""The largest learning rate that survives, by share of matrices and way of choosing, and what it is a multiple of."""

import math

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import PREDICTED_RISE
from dpsapf.experiment.methods import TOLERATED_RISE
from paper_figures.collapse import Bound, LogMean, edge, excess, factor, log_mean
from paper_figures.learning_rates import CHOSEN, PANEL, WHOLE, sweeps
from paper_figures.results import GROUP, MissingStudy, Results
from paper_figures.tables import NOTHING, Cell, Table, plain

RANDOM = "random-matrix"
RATES = 3  # of two, an edge is known to lie between them, and no more
NAMES = CHOSEN | {WHOLE: "all"}
COMPARED = {
    "edge": "edge (learning rate)",
    "predicted": "predicted",
    "over_all": "× 100 %",
    "over_random": "× random of the same size",
}
RATE_LIKE = ("edge", "predicted")
NOTE = (
    "Edge: the largest learning rate up to which no FID is worse than the public model's own beyond its spread, interpolated. "
    "Geometric means over seeds with 95 % intervals, factors paired by seed. > and <: in some seeds the edge is beyond the "
    "learning rates that were tried, and the mean is a bound. Bold: the interval excludes 1, without correction for the number "
    "of comparisons. Predicted: where noise alone is predicted to raise the mean squared prediction by {tolerated}."
)


def prepare(results: Results) -> pd.DataFrame:
    """Find the edge of collapse of every seed and average, and compare edges within seeds.

    Returns:
        One row per dataset, public model, epsilon, way of choosing and ratio, with the number of ``seeds`` and for
        ``edge`` (a learning rate), ``predicted`` (the one from which noise is predicted to break more than is tolerated;
        empty unless runs were predicted), ``over_all`` (the edge over that of 100 %) and ``over_random`` (over that of as many
        random matrices): the geometric mean, ``_sign`` (empty, > or < for a bound, ? if nothing is known), ``_low`` and
        ``_high`` of the 95 % interval, and ``_seeds``. What is not compared is empty.

    Raises:
        MissingStudy: nothing was swept; see `paper_figures.learning_rates.sweeps`.
    """
    edges = seed_edges(results)
    if edges.empty:
        raise MissingStudy(f"no seed of one setting was trained at {RATES} learning rates, between which an edge could be found")
    settings = edges.groupby([*PANEL, "way", "ratio"], sort=False)[["bound", "predicted"]].agg(dict)
    rows = [dict(zip(settings.index.names, key, strict=True)) | _numbers(key, settings) for key in settings.index]
    return pd.DataFrame(rows)


def seed_edges(results: Results) -> pd.DataFrame:
    """Return every seed's edge as ``bound`` and ``predicted``; indexed by seed, by panel, way (all first) and falling ratio.

    A seed counts with `RATES` learning rates or more; one run has no spread, so the floor's counts alone.

    Raises:
        MissingStudy: as `prepare`.
    """
    runs, floor = sweeps(results)
    order = {way: place for place, way in enumerate((WHOLE, *CHOSEN))}
    runs = runs.sort_values(["way", "ratio"], key=lambda column: column.map(order) if column.name == "way" else -column)
    floors = {key: rows["fid"].to_list() for key, rows in floor.groupby(GROUP)}
    found = []
    for panel, of_panel in runs.groupby(PANEL, sort=False):
        for key, rows in of_panel.groupby(["way", "ratio", "seed"], sort=False):
            if rows["rate"].nunique() >= RATES:
                bound = edge(rows["rate"], [excess([fid], floors[panel[:2]]) for fid in rows["fid"]])
                found.append((*panel, *key, bound, _predicted(rows)))
    return pd.DataFrame(found, columns=[*PANEL, "way", "ratio", "seed", "bound", "predicted"]).set_index("seed")


def _predicted(rows: pd.DataFrame) -> Bound:
    """Return the learning rate of one setting and seed from which noise breaks more than is tolerated, in logs between rates."""
    if rows[PREDICTED_RISE].isna().any():
        return Bound(math.nan, "?")
    return edge(rows["rate"], np.log(rows[PREDICTED_RISE] / TOLERATED_RISE))


def _numbers(key: tuple, settings: pd.DataFrame) -> dict[str, object]:
    *panel, _, ratio = key
    bounds = settings["bound"]
    edges: dict[int, Bound] = bounds[key]
    others = {"over_all": (*panel, WHOLE, 1.0), "over_random": (*panel, RANDOM, ratio)}
    means = {"edge": log_mean(list(edges.values())), "predicted": log_mean(list(settings["predicted"][key].values()))}
    for name, other in others.items():
        compared = bounds.get(other, {}) if other != key else {}
        factors = [factor(edges[seed], compared[seed]) for seed in edges if seed in compared]
        means[name] = log_mean(factors) if factors else LogMean(math.nan, "", math.nan, math.nan, 0)
    suffixes = {"mean": "", "sign": "_sign", "low": "_low", "high": "_high", "seeds": "_seeds"}
    return {name + suffixes[part]: value for name, mean in means.items() for part, value in mean._asdict().items()}


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    rows = [(*map(Cell, _names(row)), *(_cell(row, name) for name in COMPARED)) for row in data.to_dict("records")]
    header = ("dataset", "public model", "target ε", "chosen", "matrices (%)", "seeds", *COMPARED.values())
    return Table(header, tuple(rows), names=4, note=NOTE.format(tolerated=plain(TOLERATED_RISE)))


def _names(row: dict) -> tuple[str, ...]:
    epsilon, percent = plain(row["epsilon"]), plain(round(100 * row["ratio"], 6))
    return row["dataset"], row["public_model"], epsilon, NAMES[row["way"]], percent, str(row["edge_seeds"])


def _cell(row: dict, name: str) -> Cell:
    value, low, high = (row[name + part] for part in ("", "_low", "_high"))
    if math.isnan(value):
        return Cell(NOTHING)
    form = _rate if name in RATE_LIKE else "{:.2f}".format
    if math.isnan(low):
        return Cell(f"{row[name + '_sign']} {form(value)}".strip())
    return Cell(f"{form(value)} [{form(low)}–{form(high)}]", bold=name not in RATE_LIKE and not low <= 1 <= high)


def _rate(value: float) -> str:
    return f"{value:#.2g}".rstrip(".")
