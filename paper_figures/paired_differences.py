"""DP-SAPF minus every other method at one setting, seed by seed: what the spread over seeds leaves of a difference."""

import math
from collections.abc import Sequence

import pandas as pd
from scipy import optimize, stats

from dpsapf.aggregation.aggregate import CONFIDENCE, interval_factor
from dpsapf.experiment.columns import INTERVAL, SEEDS
from paper_figures.main_table import METRICS
from paper_figures.results import GROUP, MissingStudy, Results, strictly, with_labels
from paper_figures.style import look_of
from paper_figures.tables import NOTHING, Cell, Table, amount, decimals

OURS = "dp-sapf-matrix"
NOTE = (
    "{ours} minus the method, paired by seed: mean ± 95 % half width over seeds. "
    "Bold: the interval excludes 0, without correction for the number of comparisons. More accuracy and less FID are better. "
    "Smallest difference that would be seen in 80 of 100 such studies (median over the table): {visible}."
)
POWER = 0.8
VISIBLE = "_visible"  # ends the smallest difference that is seen with `POWER`


def prepare(results: Results) -> pd.DataFrame:
    """Pair DP-SAPF by matrices with every other method by seed, at the headline ratio, sigma_s and epsilon.

    Returns:
        One row per dataset, public model and method: number of seeds that both have, mean difference of accuracy
        (points) and of FID, their 95 % half widths (Student's t on the paired differences), and the smallest true
        difference whose interval excludes 0 in 80 of 100 such studies (``_visible``; noncentral t).

    Raises:
        MissingStudy: no method shares two seeds with DP-SAPF by matrices.
    """
    runs = strictly(results.runs, results, "ratio", "sigma_s", "epsilon")
    runs = with_labels(runs, results).assign(accuracy_pct=100 * runs["accuracy"])
    others, ours = runs[runs["series"] != OURS], runs[runs["series"] == OURS]
    table = paired(ours, others, GROUP)
    if table.empty:
        raise MissingStudy(f"no method shares two seeds with {look_of(OURS).label} at the headline setting")
    return table.assign(ours=look_of(OURS).label)


def paired(ours: pd.DataFrame, others: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Subtract, seed by seed, every other series from ours, and average; what shares no two seeds is left out.

    Args:
        ours: one run per seed and value of the keys, with the metrics.
        others: runs with ``series`` and ``label``, too.
        keys: columns that both must share.
    """
    pairs = others.merge(ours, on=[*keys, "seed"], suffixes=("", "_ours"))
    names = [*keys, "series", "label"]
    groups = pairs[names].assign(**{name: pairs[f"{name}_ours"] - pairs[name] for name in METRICS}).groupby(names, sort=False)
    means, seeds, spreads = groups.mean(), groups.size(), groups.std()
    halves = spreads.mul(interval_factor(seeds), axis=0).add_suffix(INTERVAL)
    visible = spreads.mul([smallest_visible(count) for count in seeds], axis=0).add_suffix(VISIBLE)
    return pd.concat([seeds.rename(SEEDS), means, halves, visible], axis=1)[seeds > 1].reset_index()


def smallest_visible(seeds: int) -> float:
    """Return the smallest mean difference, over the spread of the differences, that a paired t test sees with `POWER`.

    The test is two-sided at the level of the tables' intervals, and seen is what has the right sign; not a number for a
    single seed.
    """
    if seeds < 2:
        return math.nan
    critical, root = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1), math.sqrt(seeds)
    return optimize.brentq(lambda effect: stats.nct.sf(critical, seeds - 1, effect * root) - POWER, 0, 3 * critical / root)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out: methods down, datasets across."""
    columns = [(dataset, metric) for dataset in data["dataset"].unique() for metric in METRICS]
    places = {column: decimals(data.loc[data["dataset"] == column[0], column[1]]) for column in columns}
    rows = []
    for (public_model, label), group in data.groupby(["public_model", "label"], sort=False):
        by_dataset = {row["dataset"]: row for row in group.to_dict("records")}
        cells = [_cell(by_dataset.get(dataset), metric, places[dataset, metric]) for dataset, metric in columns]
        rows.append((Cell(public_model), Cell(label), *cells))
    units = {"accuracy_pct": "accuracy (points)", "fid": "FID"}
    header = [f"{dataset} {units[metric]}" for dataset, metric in columns]
    return Table(("public model", "minus", *header), tuple(rows), names=2, note=note(data))


def note(data: pd.DataFrame) -> str:
    """Say what the rows of `paired` are and how small a difference they could have shown."""
    accuracy, fid = (data[name + VISIBLE].median() for name in METRICS)
    return NOTE.format(ours=data["ours"].iloc[0], visible=f"{accuracy:.2g} points, FID {fid:.2g}")


def _cell(row: dict | None, metric: str, places: int) -> Cell:
    if row is None:
        return Cell(NOTHING)
    difference, half = row[metric], row[metric + INTERVAL]
    return Cell(amount(difference, places, half), bold=abs(difference) > half)
