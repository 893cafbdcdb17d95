"""Which attention matrices were selected at which ratio, beside their released scores."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from dpsapf.experiment.columns import BLOCK, LAYER, MATRIX, PROJECTION, SCORE, SELECTED
from dpsapf.experiment.runs import number
from paper_figures.results import GROUP, MissingStudy, Results, strictly
from paper_figures.style import WIDTH

ROW, MARGIN = 0.085, 2.0  # inches: height of a matrix' row; title, column names and colour bars
LABELS = 1.6  # inches: names of attention modules
NARROW, BROAD = 0.19, 1.0  # inches: width of a column, from what its name fits under to what still looks like one
STRIP = 1.4  # columns from the first ratio back to the strip of scores
SCORE_TICKS = (0, 0.25, 0.5, 1)
SUBTITLE = "released score and selected matrices"
STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # diffusers lists a UNet's middle last
SHORT = {
    r"^(down|up)_blocks\.": r"\1 ",
    r"^mid_block": "mid",
    r"\.attentions\.(\d+)\.transformer_blocks\.(\d+)": r".\1.\2",
    r"\.attn1$": " self",
    r"\.attn2$": " cross",
}


def prepare(results: Results) -> pd.DataFrame:
    """Collect the selections of DP-SAPF at the headline epsilon and sigma_s, over seeds.

    Returns:
        One row per dataset, public model, level, ratio and candidate matrix, from the UNet's input to its output: the
        mean released score, the same over the largest of its dataset and model (at least 0), and the share of seeds
        that selected the matrix.

    Raises:
        MissingStudy: no run selects a given share.
    """
    chosen = results.selections[results.selections["method"] == "dp-sapf"]
    chosen = strictly(chosen, results, "epsilon", "sigma_s").dropna(subset="ratio")
    if chosen.empty:
        raise MissingStudy("no run selects a given share of the matrices")
    keys = [*GROUP, "level", "ratio", MATRIX, LAYER, BLOCK, PROJECTION]
    data = chosen.groupby(keys, sort=False).agg(selected_share=(SELECTED, "mean"), seeds=("seed", "nunique")).reset_index()
    releases = chosen.drop_duplicates([*GROUP, "seed", MATRIX]).groupby([*GROUP, MATRIX])[SCORE].mean()
    data = data.merge(releases.reset_index(), on=[*GROUP, MATRIX], how="left")
    largest = data.groupby(GROUP)[SCORE].transform("max")
    data = data.assign(relative_score=(data[SCORE] / largest).clip(lower=0))
    stages = data[BLOCK].str.split(".").str[0].map(STAGES).fillna(0)  # other networks keep their own order
    columns = data.groupby([*GROUP, "level", "ratio"], sort=False).ngroup()
    return data.iloc[np.lexsort((stages, columns))].reset_index(drop=True)


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`: per dataset a strip of scores and a column per level and ratio; models below each other."""
    models = list(data["public_model"].unique())
    heights = [ROW * data.loc[data["public_model"] == model, MATRIX].nunique() + MARGIN for model in models]
    columns = max(_columns(data[data["public_model"] == model]) for model in models)
    width = max(min(WIDTH, LABELS + BROAD * columns), LABELS + NARROW * columns)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, model in zip(parts, models, strict=True):
        _draw_model(part, data[data["public_model"] == model])
        part.suptitle(f"{model}: {SUBTITLE}", fontsize=9)
    return figure


def _columns(data: pd.DataFrame) -> float:
    datasets = data.drop_duplicates(["dataset", "level", "ratio"])
    return len(datasets) + STRIP * datasets["dataset"].nunique()


def _draw_model(figure: SubFigure, data: pd.DataFrame) -> None:
    datasets = list(data["dataset"].unique())
    grids = {dataset: _grid(data[data["dataset"] == dataset]) for dataset in datasets}
    widths = [grid.shape[1] + STRIP for grid in grids.values()]
    axes = figure.subplots(1, len(datasets), squeeze=False, sharey=True, width_ratios=widths)[0]
    for ax, (dataset, grid) in zip(axes, grids.items(), strict=True):
        rows = data[data["dataset"] == dataset].drop_duplicates(MATRIX)
        scores, shares = _draw_dataset(ax, rows, grid)
        ax.set_title(dataset)
    _name_layers(axes[0], data.drop_duplicates(MATRIX))
    bar = {"ax": axes, "location": "bottom", "shrink": 0.8, "aspect": 50, "pad": 0.01}
    figure.colorbar(scores, label="released score / largest score", **bar).set_ticks(SCORE_TICKS, labels=map(number, SCORE_TICKS))
    names = ["by no seed", "by every seed"] if data["seeds"].max() > 1 else ["no", "yes"]
    figure.colorbar(shares, label="selected", **bar).set_ticks([0, 1], labels=names)


def _grid(data: pd.DataFrame) -> pd.DataFrame:
    """Return the share of seeds, matrices in UNet order down, matrix ratios and then layer ratios across."""
    table = data.assign(layers=data["level"] == "layer").pivot(index=MATRIX, columns=["layers", "ratio"], values="selected_share")
    return table.sort_index(axis=1).loc[data[MATRIX].unique()]


def _draw_dataset(ax: Axes, rows: pd.DataFrame, grid: pd.DataFrame) -> tuple[AxesImage, AxesImage]:
    count, columns = grid.shape
    image = {"aspect": "auto", "interpolation": "nearest"}
    strip = (-0.5 - STRIP, -STRIP + 0.5, count - 0.5, -0.5)
    scores = ax.imshow(rows[["relative_score"]], cmap="viridis", norm=PowerNorm(0.5, 0, 1), extent=strip, **image)
    shares = ax.imshow(grid, cmap="Greys", vmin=0, vmax=1, extent=(-0.5, columns - 0.5, count - 0.5, -0.5), **image)
    ax.set_xlim(-0.5 - STRIP, columns - 0.5)
    names = [f"{number(100 * ratio)} %" + " layers" * layers for layers, ratio in grid.columns]
    ax.set_xticks([-STRIP, *range(columns)], labels=["score", *names], rotation=90)
    ax.grid(visible=False)
    ax.hlines(_starts(rows)[1:] - 0.5, *ax.get_xlim(), color="0.6", linewidth=0.4)
    ax.vlines([column - 0.5 for column in range(columns)], -0.5, count - 0.5, color="0.6", linewidth=0.4)
    return scores, shares


def _starts(rows: pd.DataFrame) -> np.ndarray:
    return np.flatnonzero(rows[LAYER].ne(rows[LAYER].shift()))


def _name_layers(ax: Axes, rows: pd.DataFrame) -> None:
    starts = _starts(rows)
    middles = (starts + np.append(starts[1:], len(rows)) - 1) / 2
    ax.set_yticks(middles, labels=[short_name(name) for name in rows[LAYER].iloc[starts]])
    ax.set_ylabel(f"attention module ({', '.join(rows[PROJECTION].unique())} from top to bottom)")


def short_name(layer: str) -> str:
    """Shorten a diffusers UNet's attention module, e.g. to ``down 0.1.0 self``; other names stay as they are."""
    for pattern, replacement in SHORT.items():
        layer = re.sub(pattern, replacement, layer)
    return layer
