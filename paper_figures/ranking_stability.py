"""What else than noise moves the order of the saliency scores (from ``dpsapf compare-rankings``)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpsapf.experiment.columns import OVERLAP, RANKING_COLUMNS
from dpsapf.experiment.runs import number
from paper_figures.curves import legend
from paper_figures.results import GROUP, Results
from paper_figures.saliency_agreement import HIGH, LOW, comparisons, summarised
from paper_figures.style import SCORES, WIDTH

FILES = "ranking_stability*.csv"  # one for each dataset and public model
AXES = {"clipping_norm": "clipping bound over the config's", "images": "share of the images"}
PAIRS = {"timesteps": "other timesteps,\nno noise", "release": "another\nrelease"}


def prepare(results: Results) -> pd.DataFrame:
    """Summarise over draws.

    Returns:
        One row per dataset, public model, ratio, score, what varied and its value: of rank correlation and of overlap the
        mean, the least and the greatest over ``draws`` draws.

    Raises:
        MissingStudy: the results folder has no such table.
    """
    table = comparisons(results, FILES, RANKING_COLUMNS, "compare_rankings")
    return summarised(table, ["score", "varied", "value"])


def draw(data: pd.DataFrame) -> Figure:
    """Draw overlaps: a row of three panels per dataset, public model and ratio; a line or a mark per score."""
    panels = list(data.groupby([*GROUP, "ratio"], sort=False))
    figure = Figure(figsize=(WIDTH, 2.3 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), len(AXES) + 1, squeeze=False, sharey=True)
    for axes, ((dataset, public_model, ratio), rows) in zip(grid, panels, strict=True):
        for ax, (varied, name) in zip(axes, AXES.items(), strict=False):
            _draw_lines(ax, rows[rows["varied"] == varied], ratio)
            ax.set_xlabel(name)
        _draw_pairs(axes[-1], rows, ratio)
        axes[0].set_title(f"{dataset}, {public_model}, top {number(100 * ratio)} %", loc="left")
        axes[0].set_ylabel("overlap of the top k")
        axes[0].set_ylim(0, 1.04)
    legend(figure, [*SCORES, "random order"])
    return figure


def _style(name: str) -> dict:
    look = SCORES[name]
    return {"color": look.colour, "marker": look.marker, "markersize": look.size, "label": look.label}


def _draw_lines(ax: Axes, rows: pd.DataFrame, ratio: float) -> None:
    for name, line in rows.sort_values("value").groupby("score", sort=False):
        ax.plot(line["value"], line[OVERLAP], linestyle=SCORES[name].line, **_style(name))
        ax.fill_between(
            line["value"], line[OVERLAP + LOW], line[OVERLAP + HIGH], color=SCORES[name].colour, alpha=0.15, linewidth=0
        )
    values = sorted(rows["value"].unique())
    ax.set_xscale("log")
    ax.set_xticks(values, labels=[number(value) for value in values])
    ax.set_xticks([], minor=True)
    ax.axhline(ratio, color="black", linestyle=":", label="random order", zorder=1)


def _draw_pairs(ax: Axes, rows: pd.DataFrame, ratio: float) -> None:
    names = list(rows["score"].unique())
    for place, varied in enumerate(PAIRS):
        for row in rows[rows["varied"] == varied].to_dict("records"):
            offset = 0.13 * (names.index(row["score"]) - (len(names) - 1) / 2)
            spread = np.maximum(0, [[row[OVERLAP] - row[OVERLAP + LOW]], [row[OVERLAP + HIGH] - row[OVERLAP]]])  # of rounding
            ax.errorbar(place + offset, row[OVERLAP], yerr=spread, linestyle="none", capsize=2, **_style(row["score"]))
    ax.set_xticks(range(len(PAIRS)), labels=PAIRS.values())
    ax.set_xlim(-0.5, len(PAIRS) - 0.5)
    ax.axhline(ratio, color="black", linestyle=":", label="random order", zorder=1)
