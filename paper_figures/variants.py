"""Accuracy and FID of DP-SAPF's variants at one epsilon, with the paper's published ones beside them."""

import math
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from dpsapf.experiment.columns import INTERVAL
from dpsapf.experiment.runs import number
from paper_figures.results import GROUP, MissingStudy, Results, floor_and_ceiling, name_of, rows_of, scores, strictly, with_labels
from paper_figures.style import ORDER, WIDTH, look_of

REFERENCE = Path(__file__).parent / "reference" / "variants.csv"
VARIANTS = ("random", "noisy", "no-lora", "all-params", "dp-ldm", "no-dp")
ENOUGH = 3  # variants that a dataset needs to be drawn
PUBLISHED = {
    "DP-SAPF": "dp-sapf-matrix",
    "Layer-Level": "dp-sapf-layer",
    "Random": "random-matrix",
    "Noisy": "noisy-matrix",
    "w/o LoRA": "no-lora-matrix",
    "All Parameter": "all-params-matrix",
}
METRICS = {"accuracy_pct": "accuracy (%)", "fid": "FID"}


def prepare(results: Results) -> pd.DataFrame:
    """Collect every method at the headline ratio, sigma_s and epsilon, and the published variants.

    Returns:
        One row per panel (dataset and public model) and method: ``series``, ``label``, ``source`` (the evaluation
        protocol, or ``published``), ``reference`` (floor and ceiling), accuracy (%) and FID with 95 % half widths, empty
        for one seed.

    Raises:
        MissingStudy: no dataset has three of the variants.
    """
    table = strictly(results.summary, results, "ratio", "sigma_s", "epsilon")
    counts = table[table["method"].isin(VARIANTS)].groupby(GROUP, sort=False)["method"].nunique()
    studied = list(counts.index[counts >= ENOUGH])
    if not studied:
        raise MissingStudy(f"no dataset has runs of {ENOUGH} of the variants {', '.join(VARIANTS)}")
    panels = [_panel(table, results, *key) for key in studied]
    return pd.concat([*panels, _published()], ignore_index=True)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    trained = rows_of(table, dataset, public_model)
    trained = with_labels(trained[trained["method"] != "no-finetune"], results)
    rows = pd.concat([trained[["series"]], scores(trained)], axis=1).assign(reference=False)
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    rows = pd.concat([rows, bounds[rows.columns]], ignore_index=True)
    epsilon, percent = number(results.headline["epsilon"]), number(100 * results.headline["ratio"])
    title = f"{dataset}, {public_model}, ε = {epsilon}, {percent} % selected"
    return rows.assign(panel=title, source=results.protocol, label=[name_of(name, results) for name in rows["series"]])


def _published() -> pd.DataFrame:
    table = pd.read_csv(REFERENCE)
    series = table["variant"].map(PUBLISHED)
    titles = table["dataset"] + ", " + table["public_model"] + ", ε = " + table["epsilon"].map(number)
    rows = table[["accuracy_pct", "fid"]].assign(panel="Published (another model and scale): " + titles, source="published")
    rows = rows.assign(series=series, reference=False, label=[look_of(name).label for name in series])
    return rows.sort_values("series", key=lambda names: names.map(ORDER.index), kind="stable").sort_values("panel", kind="stable")


def draw(data: pd.DataFrame) -> Figure:
    """Draw a row of two panels per dataset, a point and a bar per method, a line across for floor and ceiling."""
    panels = list(data["panel"].unique())
    sizes = [0.21 * (data["panel"] == panel).sum() + 0.75 for panel in panels]
    figure = Figure(figsize=(WIDTH, sum(sizes)), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row", height_ratios=sizes)
    for axes, panel in zip(grid, panels, strict=True):
        rows = data[data["panel"] == panel]
        for ax, (metric, name) in zip(axes, METRICS.items(), strict=True):
            _draw_panel(ax, rows, metric)
            ax.set_xlabel(f"{name} ({rows['source'].iloc[0]})" if metric == "fid" else name)
        axes[0].set_title(panel, loc="left")
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    for place, row in enumerate(rows.to_dict("records")):
        look = look_of(row["series"])
        half = row.get(metric + INTERVAL, math.nan)
        fill = look.colour if look.filled else "white"
        style = {"color": look.colour, "marker": look.marker, "markersize": look.size, "markerfacecolor": fill, "capsize": 2.5}
        ax.errorbar(row[metric], place, xerr=None if math.isnan(half) else half, linestyle="none", **style)
        if row["reference"]:
            ax.axvline(row[metric], color=look.colour, linestyle=look.line, zorder=1)
    ax.set_yticks(range(len(rows)), labels=rows["label"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    log_if_broad(ax, rows[metric])


def log_if_broad(ax: Axes, values: pd.Series) -> None:
    """Make the x axis logarithmic if ``values`` (positive, or empty) span more than a factor of ten."""
    if values.max() > 10 * values.min():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(left=values.min() / 2)  # intervals that reach zero run off the axis
