"""Accuracy and FID against one axis: a row of two panels per dataset, with reference lines."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpsapf.formats import INTERVAL
from paper_figures.style import WIDTH, Look

COLUMNS = ["panel", "series", "label", "x", "reference", "accuracy_pct", "fid"]


def curve_figure(data: pd.DataFrame, looks: Mapping[str, Look], axis: str, source: str) -> Figure:
    """Draw a row of panels (accuracy in %, FID) per ``panel``.

    Args:
        data: rows with ``COLUMNS`` and, for error bars, ``accuracy_pct_interval95`` and ``fid_interval95``.
            A row with ``reference`` is a horizontal line, with a marker at ``x`` if that is given.
        looks: look of every series.
        axis: label of the x axis, with its unit.
        source: what FID is of, e.g. the evaluation protocol.
    """
    panels = list(data["panel"].unique())
    figure = Figure(figsize=(WIDTH, 2.3 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for row, panel in zip(grid, panels, strict=True):
        for ax, (metric, name) in zip(row, _metrics(source).items(), strict=True):
            _draw_panel(ax, data[data["panel"] == panel], metric, looks)
            ax.set(xlabel=axis, ylabel=name)
        row[0].set_title(panel, loc="left")
    _legend(figure, [ax for row in grid for ax in row])
    return figure


def _metrics(source: str) -> dict[str, str]:
    return {"accuracy_pct": "accuracy (%)", "fid": f"FID ({source})"}


def _draw_panel(ax: Axes, data: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> None:
    for series, rows in data[data[metric].notna()].groupby("series", sort=False):
        look = looks[series]
        for row in rows[rows["reference"]].to_dict("records"):
            ax.axhline(row[metric], color=look.colour, linestyle=look.line, label=row["label"], zorder=1)
            ax.plot(row["x"], row[metric], color=look.colour, marker=look.marker)
        curve = rows[~rows["reference"]].sort_values("x")
        if len(curve):
            spread = curve.get(metric + INTERVAL)
            name = curve["label"].iloc[0]
            style = {"color": look.colour, "marker": look.marker, "label": name, "capsize": 2.5, "zorder": 2}
            ax.errorbar(curve["x"], curve[metric], yerr=spread, **style)


def _legend(figure: Figure, axes: list[Axes]) -> None:
    entries: dict[str, object] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(3, len(entries)), frameon=False)
