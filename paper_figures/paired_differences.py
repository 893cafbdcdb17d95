"""DP-SAPF minus every other method at one setting, seed by seed: what the spread over seeds leaves of a difference."""

import pandas as pd

from dpsapf.aggregation.aggregate import interval_factor
from dpsapf.experiment.columns import INTERVAL, SEEDS
from paper_figures.main_table import METRICS
from paper_figures.results import GROUP, MissingStudy, Results, strictly, with_labels
from paper_figures.style import look_of
from paper_figures.tables import NOTHING, Cell, Table, amount, decimals

OURS = "dp-sapf-matrix"
NOTE = (
    f"{look_of(OURS).label} minus the method, paired by seed: mean ± 95 % half width over seeds. "
    "Bold: the interval excludes 0, without correction for the number of comparisons. More accuracy and less FID are better."
)


def prepare(results: Results) -> pd.DataFrame:
    """Pair DP-SAPF by matrices with every other method by seed, at the headline ratio, sigma_s and epsilon.

    Returns:
        One row per dataset, public model and method: number of seeds that both have, mean difference of accuracy
        (points) and of FID, and their 95 % half widths (Student's t on the paired differences).

    Raises:
        MissingStudy: no method shares two seeds with DP-SAPF by matrices.
    """
    runs = strictly(results.runs, results, "ratio", "sigma_s", "epsilon")
    runs = with_labels(runs, results).assign(accuracy_pct=100 * runs["accuracy"])
    others, ours = runs[runs["series"] != OURS], runs[runs["series"] == OURS]
    pairs = others.merge(ours, on=[*GROUP, "seed"], suffixes=("", "_ours"))
    differences = pairs[[*GROUP, "series", "label"]].assign(**{name: pairs[f"{name}_ours"] - pairs[name] for name in METRICS})
    groups = differences.groupby([*GROUP, "series", "label"], sort=False)
    means, seeds, spreads = groups.mean(), groups.size(), groups.std()
    halves = spreads.mul(interval_factor(seeds), axis=0).add_suffix(INTERVAL)
    table = pd.concat([seeds.rename(SEEDS), means, halves], axis=1)[seeds > 1].reset_index()
    if table.empty:
        raise MissingStudy(f"no method shares two seeds with {look_of(OURS).label} at the headline setting")
    return table


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
    return Table(("public model", "minus", *header), tuple(rows), names=2, note=NOTE)


def _cell(row: dict | None, metric: str, places: int) -> Cell:
    if row is None:
        return Cell(NOTHING)
    difference, half = row[metric], row[metric + INTERVAL]
    return Cell(amount(difference, places, half), bold=abs(difference) > half)
