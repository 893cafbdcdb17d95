"""Accuracy and FID against one axis: a row of two panels per dataset, with reference lines."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dpsapf.experiment.columns import INTERVAL
from dpsapf.experiment.runs import number
from paper_figures.style import WIDTH, Look


def curve_figure(data: pd.DataFrame, looks: Mapping[str, Look], axis: str, source: str) -> Figure:
    """Draw a row of panels (accuracy in %, FID) per ``panel``.

    Args:
        data: rows with ``panel``, ``series``, ``label``, ``x``, ``reference``, ``accuracy_pct``, ``fid`` and, for
            intervals, ``accuracy_pct_interval95`` and ``fid_interval95`` (half widths, empty for none).
            A row with ``reference`` is a horizontal line, its interval a band, with a marker at ``x`` if that is given.
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
    legend(figure, list(data["label"].unique()))
    return figure


def log_axis(figure: Figure, values: pd.Series) -> None:
    """Make every x axis logarithmic, with ticks at ``values`` (positive; empty ones are left out)."""
    ticks = sorted(values.dropna().unique())
    for ax in figure.axes:
        ax.set_xscale("log")
        ax.set_xticks(ticks, labels=[number(tick) for tick in ticks])
        ax.set_xticks([], minor=True)


def _metrics(source: str) -> dict[str, str]:
    return {"accuracy_pct": "accuracy (%)", "fid": f"FID ({source})"}


def _draw_panel(ax: Axes, data: pd.DataFrame, metric: str, looks: Mapping[str, Look]) -> None:
    for series, rows in data[data[metric].notna()].groupby("series", sort=False):
        look = looks[series]
        for row in rows[rows["reference"]].to_dict("records"):
            ax.axhline(row[metric], color=look.colour, linestyle=look.line, label=row["label"], zorder=1)
            ax.plot(row["x"], row[metric], **_marker(look))
            if pd.notna(half := row.get(metric + INTERVAL)):
                ax.axhspan(row[metric] - half, row[metric] + half, color=look.colour, alpha=0.15, linewidth=0, zorder=0)
        curve = rows[~rows["reference"]].sort_values("x")
        if len(curve):
            style = {"label": curve["label"].iloc[0], "linestyle": look.line, "capsize": 2.5, "zorder": 2}
            ax.errorbar(curve["x"], curve[metric], yerr=curve.get(metric + INTERVAL), **style, **_marker(look))


def _marker(look: Look) -> dict[str, object]:
    fill = look.colour if look.filled else "none"
    return {"color": look.colour, "marker": look.marker, "markersize": look.size, "markerfacecolor": fill}


def legend(figure: Figure, labels: list[str]) -> None:
    """Name every series once, in the order of ``labels``, below the panels; error bars are left out of the names' marks."""
    entries: dict[str, object] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries[label] = handle[0] if isinstance(handle, ErrorbarContainer) else handle
    shown = [label for label in labels if label in entries]
    columns = min(3, len(shown))
    figure.legend([entries[label] for label in shown], shown, loc="outside lower center", ncols=columns, frameon=False)
