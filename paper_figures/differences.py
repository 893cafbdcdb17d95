"""DP-SAPF minus every other method at one setting: what the spread over seeds leaves of a difference of means."""

import math
from collections.abc import Sequence

import pandas as pd
from scipy import optimize, stats

from dpsapf.aggregation.multiple_tests import LEVEL, holm
from dpsapf.aggregation.welch import POWER, Difference, welch
from dpsapf.experiment.columns import INTERVAL, SEEDS
from paper_figures.main_table import METRICS
from paper_figures.results import GROUP, MissingStudy, Results, strictly, with_labels
from paper_figures.style import look_of
from paper_figures.tables import MISSING, NOTHING, Cell, Table, amount, decimals

OURS = "dp-sapf-matrix"
NOTE = (
    "{ours} minus the method: difference of the means over seeds ± 95 % half width (p of Welch's test, and p after "
    "Holm's correction for the table's {tests} tests). Bold: the corrected p is at most {level:g}. "
    "More accuracy and less FID are better. "
    "Smallest difference that would be seen in 80 of 100 such studies (median over the table): {visible}."
)
VISIBLE = "_visible"  # ends the smallest difference that is seen with `POWER`
P, P_HOLM = "_p", "_p_holm"  # end the p-value of Welch's test, and the one that is corrected for all tests of the table


def prepare(results: Results) -> pd.DataFrame:
    """Compare DP-SAPF by matrices with every other method, at the headline ratio, sigma_s and epsilon.

    Returns:
        One row per dataset, public model and method: number of seeds of the one that has fewer, difference of the mean accuracies
        (points) and FIDs, their 95 % half widths (Welch), the smallest true difference whose interval excludes 0 in 80 of
        100 such studies (``_visible``; noncentral t), and p-values (``_p``; after Holm's correction ``_p_holm``).

    Raises:
        MissingStudy: no method and DP-SAPF by matrices have two seeds each.
    """
    runs = strictly(results.runs, results, "ratio", "sigma_s", "epsilon")
    runs = with_labels(runs, results).assign(accuracy_pct=100 * runs["accuracy"])
    others, ours = runs[runs["series"] != OURS], runs[runs["series"] == OURS]
    table = differences(ours, others, GROUP)
    if table.empty:
        raise MissingStudy(f"no method and {look_of(OURS).label} have two seeds each at the headline setting")
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


def differences(ours: pd.DataFrame, others: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Subtract the mean of every other series from ours; what has a single seed on either side is left out.

    Args:
        ours: one run per seed and value of the keys, with the metrics.
        others: runs with ``series`` and ``label``, too.
        keys: columns that both must share.

    Returns:
        One row per key and series: ``n`` (seeds of the side that has fewer) and, of each metric, what `prepare` says.
    """
    sides, names = dict(list(ours.groupby(list(keys)))), [*keys, "series", "label"]
    rows = []
    for key, rows_of_other in others.groupby(names, sort=False):
        own = sides.get(key[: len(keys)], ours[:0])
        seeds = min(len(own), len(rows_of_other))
        if seeds > 1:
            compared = {name: welch(own[name], rows_of_other[name]) for name in METRICS}
            told = [_told(name, difference) for name, difference in compared.items()]
            rows.append(dict(zip(names, key, strict=True)) | {SEEDS: seeds} | told[0] | told[1])
    return _corrected(pd.DataFrame(rows)) if rows else pd.DataFrame()


def _told(name: str, difference: Difference) -> dict[str, float]:
    visible = smallest_visible(difference.freedom) * difference.error
    half = difference.half_width(LEVEL)
    return {name: difference.mean, name + INTERVAL: half, name + VISIBLE: visible, name + P: difference.two_sided()}


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's p-values; the family is all of the table: every row and metric."""
    p = table[[name + P for name in METRICS]]
    corrected = holm(p.to_numpy().ravel()).reshape(p.shape)
    return table.assign(**{name + P_HOLM: corrected[:, place] for place, name in enumerate(METRICS)})


def smallest_visible(freedom: float) -> float:
    """Return the smallest mean difference, over its standard error, that a two-sided t test sees with `POWER`.

    Seen is what has the right sign.

    Args:
        freedom: degrees of freedom, above 0; infinity where nothing spreads.
    """
    critical = stats.t.isf(LEVEL / 2, freedom)
    if math.isinf(freedom):
        return float(critical + stats.norm.isf(1 - POWER))
    return optimize.brentq(lambda effect: stats.nct.sf(critical, freedom, effect) - POWER, 0, 3 * critical)


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
    """Say what the rows of `differences` are and how small a difference they could have shown."""
    accuracy, fid = (data[name + VISIBLE].median() for name in METRICS)
    tests = int(data[[name + P for name in METRICS]].notna().sum().sum())
    visible = f"{accuracy:.2g} points, FID {fid:.2g}"
    return NOTE.format(ours=data["ours"].iloc[0], tests=tests, level=round(LEVEL, 9), visible=visible)


def cell(row: dict | None, metric: str, places: int) -> Cell:
    """Write a difference with its interval and p-values; bold if the corrected one decides; a dash for no row."""
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
