"""DP-SAPF minus every other method at one setting, seed by seed: what the spread over seeds leaves of a difference."""

import math
from collections.abc import Sequence

import pandas as pd
from scipy import optimize, stats

from dpsapf.aggregation.aggregate import interval_factor
from dpsapf.aggregation.multiple_tests import LEVEL, holm, p_value
from dpsapf.experiment.columns import INTERVAL, SEEDS
from paper_figures.main_table import METRICS
from paper_figures.results import GROUP, MissingStudy, Results, strictly, with_labels
from paper_figures.style import look_of
from paper_figures.tables import MISSING, NOTHING, Cell, Table, amount, decimals

OURS = "dp-sapf-matrix"
NOTE = (
    "{ours} minus the method, paired by seed: mean ± 95 % half width over seeds (p of the paired t test, and p after "
    "Holm's correction for the table's {tests} tests). Bold: the corrected p is at most {level:g}. "
    "More accuracy and less FID are better. "
    "Smallest difference that would be seen in 80 of 100 such studies (median over the table): {visible}."
)
POWER = 0.8
VISIBLE = "_visible"  # ends the smallest difference that is seen with `POWER`
P, P_HOLM = "_p", "_p_holm"  # end the p-value of the paired t test, and the one that is corrected for all tests of the table


def prepare(results: Results) -> pd.DataFrame:
    """Pair DP-SAPF by matrices with every other method by seed, at the headline ratio, sigma_s and epsilon.

    Returns:
        One row per dataset, public model and method: number of seeds that both have, mean difference of accuracy
        (points) and of FID, their 95 % half widths (Student's t on the paired differences), the smallest true
        difference whose interval excludes 0 in 80 of 100 such studies (``_visible``; noncentral t), and p-values (``_p``; after
        Holm's correction ``_p_holm``).

    Raises:
        MissingStudy: no method shares two seeds with DP-SAPF by matrices.
    """
    runs = strictly(results.runs, results, "ratio", "sigma_s", "epsilon")
    runs = with_labels(runs, results).assign(accuracy_pct=100 * runs["accuracy"])
    others, ours = runs[runs["series"] != OURS], runs[runs["series"] == OURS]
    table = paired(ours, others, GROUP)
    if table.empty:
        raise MissingStudy(f"no method shares two seeds with {look_of(OURS).label} at the headline setting")
    table = pd.concat([table, _missing(table, results)], ignore_index=True)
    return table.assign(ours=look_of(OURS).label, missing_note=results.missing_note)


def _missing(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Return a row without values for every pair that has too few seeds because runs are missing."""
    if results.missing.empty:
        return pd.DataFrame()
    lost = with_labels(strictly(results.missing, results, "ratio", "sigma_s", "epsilon"), results)
    alone = lost[lost["series"] == OURS][GROUP].drop_duplicates()
    others = with_labels(strictly(results.runs, results, "ratio", "sigma_s", "epsilon"), results)
    pairs = pd.concat([lost[lost["series"] != OURS], others[others["series"] != OURS].merge(alone, on=GROUP)])
    pairs = pairs[[*GROUP, "series", "label"]].drop_duplicates()
    known = pairs.merge(table[[*GROUP, "series"]], on=[*GROUP, "series"], how="left", indicator=True)
    return pairs[(known["_merge"] == "left_only").to_numpy()].assign(**{SEEDS: 0})


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
    table = pd.concat([seeds.rename(SEEDS), means, halves, visible], axis=1).assign(**_p_values(means, spreads, seeds))
    return _corrected(table[seeds > 1].reset_index())


def _p_values(means: pd.DataFrame, spreads: pd.DataFrame, seeds: pd.Series) -> dict[str, list[float]]:
    return {name + P: [p_value(*test) for test in zip(means[name], spreads[name], seeds, strict=True)] for name in METRICS}


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's p-values; the family is all of the table: every row and metric."""
    p = table[[name + P for name in METRICS]]
    corrected = holm(p.to_numpy().ravel()).p.reshape(p.shape)
    return table.assign(**{name + P_HOLM: corrected[:, place] for place, name in enumerate(METRICS)})


def smallest_visible(seeds: int, level: float = LEVEL) -> float:
    """Return the smallest mean difference, over the spread of the differences, that a paired t test sees with `POWER`.

    The test is two-sided at ``level``, and seen is what has the right sign; not a number for a single seed.
    """
    if seeds < 2:
        return math.nan
    critical, root = stats.t.isf(level / 2, seeds - 1), math.sqrt(seeds)
    return optimize.brentq(lambda effect: stats.nct.sf(critical, seeds - 1, effect * root) - POWER, 0, 3 * critical / root)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out: methods down, datasets across."""
    columns = [(dataset, metric) for dataset in data["dataset"].unique() for metric in METRICS]
    places = {column: decimals(data.loc[data["dataset"] == column[0], column[1]]) for column in columns}
    rows = []
    for (public_model, label), group in data.groupby(["public_model", "label"], sort=False):
        by_dataset = {row["dataset"]: row for row in group.to_dict("records")}
        cells = [cell(by_dataset.get(dataset), metric, places[dataset, metric]) for dataset, metric in columns]
        rows.append((Cell(public_model), Cell(label), *cells))
    units = {"accuracy_pct": "accuracy (points)", "fid": "FID"}
    header = [f"{dataset} {units[metric]}" for dataset, metric in columns]
    notes = (note(data), data["missing_note"].iloc[0])
    return Table(("public model", "minus", *header), tuple(rows), names=2, note=" ".join(filter(None, notes)))


def note(data: pd.DataFrame) -> str:
    """Say what the rows of `paired` are and how small a difference they could have shown."""
    accuracy, fid = (data[name + VISIBLE].median() for name in METRICS)
    tests = int(data[[name + P for name in METRICS]].notna().sum().sum())
    visible = f"{accuracy:.2g} points, FID {fid:.2g}"
    return NOTE.format(ours=data["ours"].iloc[0], tests=tests, level=round(LEVEL, 9), visible=visible)


def cell(row: dict | None, metric: str, places: int) -> Cell:
    """Write a difference of `paired` with its interval and p-values; bold if the corrected one decides; a dash for no row."""
    if row is None:
        return Cell(NOTHING)
    if row[SEEDS] == 0:
        return Cell(MISSING)
    tests = ", ".join(p_text(row[metric + name]) for name in (P, P_HOLM))
    return Cell(f"{amount(row[metric], places, row[metric + INTERVAL])} ({tests})", bold=row[metric + P_HOLM] <= LEVEL)


def p_text(value: float) -> str:
    """Write a p-value with two digits, or as a bound below 0.001; a dash for none."""
    if math.isnan(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.2g}"
