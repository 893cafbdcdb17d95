"""How well noisy saliency scores keep the noiseless order, against the noise (from ``dpsapf compare-scores``)."""

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
    paths = sorted(Path(results.layout.table("")).glob(FILES))
    if not paths:
        raise MissingStudy(f"no tables/{FILES}: name datasets in the config's compare_scores, or use `dpsapf compare-scores`")
    table = pd.concat([pd.read_csv(path, usecols=list(AGREEMENT_COLUMNS)) for path in paths], ignore_index=True)
    groups = table.groupby([*GROUP, "ratio", "score", "sigma_s"], sort=False)
    columns = {"draws": ("seed", "nunique")}
    for metric in METRICS:
        columns |= {metric: (metric, "mean"), metric + LOW: (metric, "min"), metric + HIGH: (metric, "max")}
    data = groups.agg(**columns).reset_index()
    return data.assign(**{f"{RANK_CORRELATION}_random": 0.0, f"{OVERLAP}_random": data["ratio"]})


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
