"""FID over the floor's against what noise alone is predicted to break: one cause for every way, share and learning rate.

The prediction knows settings and the public model alone, see `dpsapf.optimization.noise_walk`. If noise is what breaks
training, every setting collapses near the same prediction, however many matrices it trains, and which.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from dpsapf.experiment.columns import PREDICTED_RISE, SEEDS, USED_RATE
from dpsapf.experiment.methods import TOLERATED_RISE
from paper_figures.learning_rates import CHOSEN, LEAST, PANEL, WHOLE, look_of_way, title
from paper_figures.results import GROUP, MissingStudy, Results, with_labels
from paper_figures.style import PALETTE, WIDTH, Look

FROZEN, WEIGHED = "ffa-lora", "weighed"
LOOKS = {way: look_of_way(way) for way in (*CHOSEN, WHOLE)} | {
    FROZEN: Look("FFA-LoRA", PALETTE[2], "^"),
    WEIGHED: Look("chosen by signal and noise", PALETTE[4], "s"),
}
ENOUGH = 3  # settings that a rank correlation needs
COLUMNS = 2  # of panels


def prepare(results: Results) -> pd.DataFrame:
    """Average FID over the seeds of every setting whose rise was predicted.

    Returns:
        One row per dataset, public model, epsilon and setting: ``way`` (of `LOOKS`), ``ratio`` (empty: found by the
        rule), ``rate``, seeds, means of FID and of the predicted rise, FID over the floor's, and ``rank_correlation``,
        Spearman's between FID and prediction over the settings of the panel.

    Raises:
        MissingStudy: nothing was predicted beside a floor, or only for one or two settings.
    """
    runs, floor = results.runs, results.runs[results.runs["method"] == "no-finetune"]
    if PREDICTED_RISE not in runs or runs[PREDICTED_RISE].isna().all():
        raise MissingStudy("no run has a prediction of what noise breaks: name its dataset under measure_fragility")
    runs = with_labels(runs[runs[PREDICTED_RISE].notna() & runs["epsilon"].notna()], results)
    rates = runs["learning_rate"].fillna(runs[USED_RATE])
    runs = runs.assign(way=[_way(row) for row in runs.to_dict("records")], rate=rates)
    floors = floor.groupby(GROUP)["fid"].mean().rename("floor_fid").reset_index()
    runs = runs[runs["way"].isin(LOOKS)].merge(floors, on=GROUP)
    keys = [*PANEL, "way", "ratio", "rule", "score", "adapter", "rate", "floor_fid"]
    groups = runs.groupby(keys, sort=False, dropna=False)
    means = pd.concat([groups.size().rename(SEEDS), groups[["fid", PREDICTED_RISE]].mean()], axis=1).reset_index()
    panels = [rows for _, rows in means.groupby(PANEL, sort=False) if len(rows) >= ENOUGH]
    if not panels:
        raise MissingStudy(f"no dataset has {ENOUGH} settings with a prediction of what noise breaks, and a floor")
    table = pd.concat([rows.assign(rank_correlation=_rank_correlation(rows)) for rows in panels], ignore_index=True)
    return table.assign(fid_over_floor=table["fid"] / table["floor_fid"], protocol=results.protocol)


def _way(row: dict) -> str | None:
    if row["adapter"] == FROZEN:
        return FROZEN
    if row["rule"] in (None, "top") or pd.isna(row["rule"]):
        return row["series"]
    return row["series"] + LEAST if row["rule"] == "least" else WEIGHED


def _rank_correlation(rows: pd.DataFrame) -> float:
    return float(stats.spearmanr(rows["fid"], rows[PREDICTED_RISE]).statistic)


def draw(data: pd.DataFrame) -> Figure:
    """Draw a panel per dataset, public model and epsilon; a mark per setting, the larger the more matrices it trains."""
    panels = list(data.groupby(PANEL, sort=False))
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 2.5 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax, (key, of_panel) in zip(grid.flat, panels, strict=False):
        _draw_panel(ax, of_panel, title(dict(zip(PANEL, key, strict=True))))
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    for first, *_ in grid:
        first.set_ylabel("FID over the floor's")
    for column in grid.T:
        [ax for ax in column if ax.get_visible()][-1].set_xlabel("rise predicted from noise alone")
    figure.legend(handles=_explained(data), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, name: str) -> None:
    for way, of_way in rows.groupby("way", sort=False):
        look = LOOKS[way]
        sizes = 10 + 40 * of_way["ratio"].fillna(1.0 if way in (WHOLE, FROZEN) else 0.3)
        style = {"color": look.colour, "marker": look.marker, "edgecolors": "0.2", "linewidths": 0.4, "alpha": 0.85}
        ax.scatter(of_way[PREDICTED_RISE], of_way["fid_over_floor"], s=sizes, **style)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.axhline(1, color="0.4", linewidth=1, zorder=1)
    ax.axvline(TOLERATED_RISE, color="black", linestyle="--", linewidth=1, zorder=1)
    correlation = rows["rank_correlation"].iloc[0]
    ax.set_title(f"{name}; rank correlation {np.round(correlation, 2):.2f}", fontsize=8)


def _name(way: str) -> str:
    return CHOSEN.get(way) or LOOKS[way].label


def _explained(data: pd.DataFrame) -> list[Line2D]:
    ways = [way for way in LOOKS if (data["way"] == way).any()]
    style = {"markeredgecolor": "0.2", "markeredgewidth": 0.4, "linestyle": "none"}
    marks = [Line2D([], [], color=LOOKS[way].colour, marker=LOOKS[way].marker, label=_name(way), **style) for way in ways]
    return [
        *marks,
        Line2D([], [], color="black", linestyle="--", linewidth=1, label="tolerated rise"),
        Line2D([], [], color="0.4", linewidth=1, label="public model as it is"),
    ]
