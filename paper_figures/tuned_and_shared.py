"""Accuracy and FID of every way at a learning rate of its own, beside the one learning rate that the config gives to all.

The best learning rate is not looked up in the results it is shown with: FID is computed on private training images and
accuracy on private test images, both outside the guarantee, so that a choice by them would cost privacy that nobody
accounted. A rule chooses, named in the column ``chosen_by``:

``noise``: the largest learning rate at which noise alone is predicted to break little, `learning_rate: auto`; it knows
settings and the public model alone, and is taken where a way has it.

``proxy``: the learning rate with the lowest mean FID on the *other* datasets of the results, at the same public model and
epsilon, is carried over (leave one dataset out). FID on those is of their private images, so that they must be treated as
public: a proxy is a dataset whose images may be looked at. Nothing of the dataset itself is used.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpsapf.aggregation.aggregate import interval_factor
from dpsapf.experiment.columns import INTERVAL, SEEDS
from dpsapf.experiment.runs import number
from paper_figures.dots import log_if_broad
from paper_figures.learning_rates import AUTO, CHOSEN, PANEL, look_of_way, name_of_way, runs_at_rates, title
from paper_figures.main_table import METRICS
from paper_figures.results import MissingStudy, Results, floor_and_ceiling
from paper_figures.style import WIDTH, Look, look_of

PROXY = "proxy"
CHOSEN_BY = "chosen_by"
OWN, SHARED = "own", "shared"
NOISE = "noise"
ENOUGH = 2  # learning rates that all datasets have, to choose from


def prepare(results: Results) -> pd.DataFrame:
    """Choose a learning rate for every way on the other datasets, and set it beside the shared one.

    Returns:
        One row per dataset, public model, epsilon, way (at the headline ratio) and ``setting`` (``own`` or ``shared``):
        label, ``rate`` (peak learning rate; the geometric mean over seeds), ``chosen_by`` (``noise`` or ``proxy``, or
        ``config`` for the shared one), ``proxies`` (the datasets that it was chosen on), accuracy (%) and FID, means over
        seeds with 95 % half widths (empty for one seed). Floor and ceiling have neither way nor rate.

    Raises:
        MissingStudy: no way has a learning rate of its own (by noise, or by two on two datasets) beside the config's.
    """
    pairs = own_and_shared(tuned_runs(results))
    panels = [_with_bounds(rows, results) for _, rows in pairs.groupby(PANEL, sort=False)]
    return pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)


def own_and_shared(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds and choose: the rows of `prepare` without floor and ceiling.

    Args:
        runs: of `tuned_runs`.

    Raises:
        MissingStudy: as `prepare`.
    """
    table = _means(runs)
    table = table.assign(label=[name_of_way(*key) for key in zip(table["way"], table["ratio"], strict=True)])
    first = {way: place for place, way in enumerate(CHOSEN)}
    table = table.sort_values("way", key=lambda ways: ways.map(first).fillna(len(first)), kind="stable")
    pairs = [_pair(rows, table) for _, rows in table.groupby([*PANEL, "way"], sort=False)]
    pairs = [pair for pair in pairs if len(pair)]
    if not any((pair["setting"] == SHARED).any() for pair in pairs):
        raise MissingStudy("no way has a learning rate that noise allows, or two on two datasets, beside the config's own")
    return pd.concat(pairs, ignore_index=True)


def tuned_runs(results: Results) -> pd.DataFrame:
    """Return the runs of `runs_at_rates` at the headline ratio, or one that was found, with `accuracy_pct` and two columns more.

    ``shared`` tells the config's own learning rate, ``auto`` one that noise allows; the ``rate`` of those is their mean.
    """
    runs = runs_at_rates(results)
    runs = runs[runs["level"].isna() | runs["ratio"].isna() | (runs["ratio"] == results.headline["ratio"])]
    auto = runs["learning_rate"] == AUTO
    means = np.exp(np.log(runs["rate"].where(auto)).groupby([runs[name] for name in (*PANEL, "way")]).transform("mean"))
    rates = runs["rate"].where(~auto, means)
    return runs.assign(rate=rates, auto=auto, shared=runs["learning_rate"].isna(), accuracy_pct=100 * runs["accuracy"])


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    groups = runs.groupby([*PANEL, "way", "series", "ratio", "rate", "shared", "auto"], sort=False, dropna=False)
    counts, metrics = groups.size(), groups[list(METRICS)]
    halves = metrics.std().mul(interval_factor(counts), axis=0).add_suffix(INTERVAL)
    return pd.concat([counts.rename(SEEDS), metrics.mean(), halves], axis=1).reset_index()


def _with_bounds(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    panel = rows[PANEL].iloc[0].to_dict()
    bounds = floor_and_ceiling(results, panel["dataset"], panel["public_model"])
    return pd.concat([rows, bounds.assign(**panel)], ignore_index=True).assign(panel=title(panel))


def _pair(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return a way's row at its own learning rate and, if there is one, that at the shared one; no rows without the former."""
    own = rows[rows["auto"]].assign(**{"setting": OWN, CHOSEN_BY: NOISE, "proxies": ""})
    if own.empty:
        rate, proxies = proxy_rate(rows, table)
        own = rows[rows["rate"] == rate].assign(**{"setting": OWN, CHOSEN_BY: PROXY, "proxies": " ".join(proxies)})
    shared = rows[rows["shared"]].assign(**{"setting": SHARED, CHOSEN_BY: "config"})
    return pd.concat([own, shared]) if len(own) else own


def proxy_rate(rows: pd.DataFrame, table: pd.DataFrame) -> tuple[float, list[str]]:
    """Choose a way's learning rate by its FID on the other datasets, each at equal weight (mean of log FID).

    Args:
        rows: the way's rows on one dataset; only their rates are looked at.
        table: rows of all datasets.

    Returns:
        The rate of lowest FID among those that ``rows`` and every proxy have, and the proxies: the other datasets with
        at least two of the rates. Not a number, and none, if there are none.
    """
    same = table[["public_model", "epsilon", "way"]].eq(rows[["public_model", "epsilon", "way"]].iloc[0]).all(axis=1)
    others = table[same & ~table["auto"] & (table["dataset"] != rows["dataset"].iloc[0]) & table["rate"].isin(rows["rate"])]
    fids = np.log(others.pivot(index="rate", columns="dataset", values="fid"))
    fids = fids.loc[:, fids.notna().sum() >= ENOUGH].dropna()
    if len(fids) < ENOUGH:
        return math.nan, []
    return fids.mean(axis=1).idxmin(), list(fids.columns)


def draw(data: pd.DataFrame) -> Figure:
    """Draw a row of two panels per dataset, public model and epsilon: filled at the own rate, hollow at the shared."""
    panels = list(data.groupby("panel", sort=False))
    sizes = [0.36 * rows["way"].nunique() + 0.85 for _, rows in panels]
    figure = Figure(figsize=(WIDTH, sum(sizes) + 0.4), layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row", height_ratios=sizes)
    for axes, (panel, rows) in zip(grid, panels, strict=True):
        for ax, (metric, (name, _)) in zip(axes, METRICS.items(), strict=True):
            _draw_panel(ax, rows, metric)
            ax.set_xlabel(f"{name} ({rows['protocol'].iloc[0]})" if metric == "fid" else name)
        axes[0].set_title(panel, loc="left")
    figure.legend(handles=_explained(data), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    for row in rows[rows["way"].isna()].to_dict("records"):
        look = look_of(row["series"])
        ax.axvline(row[metric], color=look.colour, linestyle=look.line, zorder=1)
    ways = list(rows.dropna(subset="way").groupby("way", sort=False))
    for place, (way, pair) in enumerate(ways):
        for row in pair.to_dict("records"):
            _mark(ax, place, row, metric, look_of_way(way))
    ax.set_yticks(range(len(ways)), labels=[_name(pair) for _, pair in ways])
    ax.set_ylim(len(ways) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    log_if_broad(ax, rows[metric])


def _mark(ax: Axes, place: int, row: dict, metric: str, look: Look) -> None:
    own, half = row["setting"] == OWN, row[metric + INTERVAL]
    style = {"marker": look.marker, "markersize": look.size + 1, "markeredgecolor": "0.2", "linestyle": "none"}
    style |= {"ecolor": "0.2", "elinewidth": 1, "capsize": 2.5}
    fill = look.colour if own else "white"
    place += -0.17 if own else 0.17
    ax.errorbar(row[metric], place, xerr=None if math.isnan(half) else half, markerfacecolor=fill, **style)


def _name(pair: pd.DataFrame) -> str:
    rates = [f"{number(float(f'{rate:.2g}'))} ({setting})" for setting, rate in zip(pair["setting"], pair["rate"], strict=True)]
    return f"{pair['label'].iloc[0]}\n{', '.join(rates)}"


def _by(data: pd.DataFrame) -> str:
    names = {NOISE: "that noise allows", PROXY: "chosen on the other datasets"}
    return " or ".join(name for rule, name in names.items() if (data[CHOSEN_BY] == rule).any())


def _explained(data: pd.DataFrame) -> list[Line2D]:
    mark = {"color": "0.3", "marker": "o", "markersize": 6, "linestyle": "none"}
    marks = [
        Line2D([], [], label=f"own learning rate, {_by(data)}", **mark),
        Line2D([], [], label="shared learning rate, the config's", markerfacecolor="white", **mark),
    ]
    bounds = [look_of(series) for series in data.loc[data["way"].isna(), "series"].unique()]
    return marks + [Line2D([], [], color=look.colour, linestyle=look.line, label=look.label) for look in bounds]
