"""Accuracy and FID of a few settings: a row of two panels per group, a point and a bar per setting."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from dpsapf.experiment.columns import INTERVAL
from paper_figures.style import LOOKS, WIDTH, Look

METRICS = {"accuracy_pct": "accuracy (%)", "fid": "FID"}


def dot_figure(data: pd.DataFrame, looks: Mapping[str, Look] = LOOKS) -> Figure:
    """Draw a row of two panels (accuracy in %, FID) per ``panel``, a line across for a reference.

    Args:
        data: rows with ``panel``, ``series``, ``label``, ``source`` (what FID is of), ``reference``, ``accuracy_pct``, ``fid``
            and, for intervals, ``accuracy_pct_interval95`` and ``fid_interval95`` (half widths, empty for none).
        looks: look of every series.
    """
    panels = list(data["panel"].unique())
    sizes = [0.21 * (data["panel"] == panel).sum() + 0.75 for panel in panels]
    figure = Figure(figsize=(WIDTH, sum(sizes)), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row", height_ratios=sizes)
    for axes, panel in zip(grid, panels, strict=True):
        rows = data[data["panel"] == panel]
        for ax, (metric, name) in zip(axes, METRICS.items(), strict=True):
            _draw_panel(ax, rows, metric, looks)
            ax.set_xlabel(f"{name} ({rows['source'].iloc[0]})" if metric == "fid" else name)
        axes[0].set_title(panel, loc="left")
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> None:
    for place, row in enumerate(rows.to_dict("records")):
        look = looks[row["series"]]
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
