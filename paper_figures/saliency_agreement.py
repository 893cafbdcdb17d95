"""How well noisy saliency scores keep the noiseless order, against the noise (from ``dpsapf compare-scores``)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpsapf.experiment.columns import AGREEMENT_COLUMNS, OVERLAP, RANK_CORRELATION
from dpsapf.experiment.runs import number
from paper_figures.curves import legend, log_axis
from paper_figures.results import GROUP, MissingStudy, Results
from paper_figures.style import SCORES, WIDTH

FILES = "saliency_agreement*.csv"  # one for each dataset and public model
METRICS = {RANK_CORRELATION: "rank correlation", OVERLAP: "overlap of the top k"}  # of the noisy with the noiseless order
LOW, HIGH = "_least", "_greatest"  # over the draws of the noise
RANDOM = "random order"


def prepare(results: Results) -> pd.DataFrame:
    """Summarise the agreement over the draws of the noise.

    Returns:
        One row per dataset, public model, ratio, score and sigma_s: of rank correlation and of overlap the mean, the
        least and the greatest over ``draws`` draws, and what a random order has on average (0 and the ratio).

    Raises:
        MissingStudy: the results folder has no such table.
    """
    table = comparisons(results, FILES, AGREEMENT_COLUMNS, "compare_scores")
    data = summarised(table, ["score", "sigma_s"])
    return data.assign(**{f"{RANK_CORRELATION}_random": 0.0, f"{OVERLAP}_random": data["ratio"]})


def comparisons(results: Results, files: str, columns: Sequence[str], key: str) -> pd.DataFrame:
    """Read every table of comparisons of scores.

    Args:
        results: in whose ``tables`` folder they are.
        files: pattern of their names.
        columns: that they have.
        key: of the config that makes them; its command has the same name.

    Raises:
        MissingStudy: there is none.
    """
    paths = sorted(Path(results.layout.table("")).glob(files))
    if not paths:
        command = key.replace("_", "-")
        raise MissingStudy(f"no tables/{files}: name datasets in the config's {key}, or use `dpsapf {command}`")
    return pd.concat([pd.read_csv(path, usecols=list(columns)) for path in paths], ignore_index=True)


def summarised(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return mean, least and greatest of both metrics over draws, by dataset, public model, ratio and ``keys``."""
    columns = {"draws": ("seed", "nunique")}
    for metric in METRICS:
        columns |= {metric: (metric, "mean"), metric + LOW: (metric, "min"), metric + HIGH: (metric, "max")}
    return table.groupby([*GROUP, "ratio", *keys], sort=False).agg(**columns).reset_index()


def draw(data: pd.DataFrame) -> Figure:
    """Draw a row of two panels per dataset, public model and ratio: a line per score, a band from least to greatest."""
    panels = list(data.groupby([*GROUP, "ratio"], sort=False))
    figure = Figure(figsize=(WIDTH, 2.5 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for axes, ((dataset, public_model, ratio), rows) in zip(grid, panels, strict=True):
        for ax, (metric, name) in zip(axes, METRICS.items(), strict=True):
            _draw_panel(ax, rows, metric)
            ax.set(xlabel="σ_s (noise multiplier of the scores)", ylabel=name)
        axes[0].set_title(f"{dataset}, {public_model}, top {number(100 * ratio)} %", loc="left")
    log_axis(figure, data["sigma_s"])
    legend(figure, [*SCORES, RANDOM])
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    for name, line in rows.sort_values("sigma_s").groupby("score", sort=False):
        look = SCORES[name]
        style = {"color": look.colour, "marker": look.marker, "markersize": look.size, "linestyle": look.line}
        ax.plot(line["sigma_s"], line[metric], label=look.label, **style)
        ax.fill_between(line["sigma_s"], line[metric + LOW], line[metric + HIGH], color=look.colour, alpha=0.15, linewidth=0)
    ax.axhline(rows[f"{metric}_random"].iloc[0], color="black", linestyle=":", label=RANDOM, zorder=1)
