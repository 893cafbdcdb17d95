"""Claims against the learning rate: what either side differs by at each one that was tried, with intervals and margins."""

import dataclasses
import math
import textwrap
import typing
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from paper_figures.claims import ACCURACY, CLAIMS, FID, Claim, Metric
from paper_figures.comparisons import of_claim, one_each
from paper_figures.curves import legend, log_axis
from paper_figures.judging import judge, rule_of
from paper_figures.learning_rates import title
from paper_figures.margins import margin
from paper_figures.results import MissingStudy, Results
from paper_figures.style import PALETTE, WIDTH

METRICS = {metric.name: metric for metric in (ACCURACY, FID)}
NAMES = {"accuracy": "difference (points)", "FID": "ratio"}
WRAP = 48  # characters of a title's line
MARKERS = "oDs^vPX*"
SHIFT = 1.025  # between the marks of two settings at one learning rate, as a factor


def prepare(results: Results) -> pd.DataFrame:
    """Judge each claim at every learning rate at which both of its sides were trained.

    Returns:
        One row per claim, metric (accuracy in points, or FID as a factor), setting and learning rate: ``ours`` (the
        difference), its 90 % interval (``low``, ``high``; empty for one seed), ``seeds``, ``state`` (ahead, level, behind,
        undecided) and the ``margin``. Claims whose sides share one learning rate at most are left out.

    Raises:
        MissingStudy: no claim has both sides at two learning rates.
    """
    pairs = [(_at_each_rate(claim), metric) for claim in CLAIMS for metric in claim.metrics if metric.name in METRICS]
    rows = [row for claim, metric in pairs for row in _rows(claim, metric, results)]
    data = pd.DataFrame(rows)
    if data.empty or not (several := data.groupby("claim")["rate"].transform("nunique") > 1).any():
        raise MissingStudy("no claim has both of its sides at two learning rates: config/stability.yaml")
    return data[several].reset_index(drop=True)


def _at_each_rate(claim: Claim) -> Claim:
    same = tuple("rate" if column == "kind" else column for column in claim.same)
    return dataclasses.replace(claim, same=same, apart=("epsilon", "rate"))


def _rows(claim: Claim, metric: Metric, results: Results) -> list[dict[str, object]]:
    rule, rows = rule_of(metric, claim.expected, margin(claim, metric)), []
    for comparison in one_each(of_claim(claim, metric, results)):
        one, setting = judge(comparison, rule), comparison.setting
        if math.isnan(setting["rate"]):
            continue
        values = {"ours": one.difference.mean, "low": one.low, "high": one.high, "margin": rule.margin}
        shown = {name: math.exp(value) if metric.log else value for name, value in values.items()}
        told = {"claim": claim.id, "panel": _panel(claim, metric, setting), "metric": metric.name, "label": title(setting)}
        told |= {"rate": setting["rate"], "seeds": comparison.seeds, "state": one.state, "protocol": results.protocol}
        rows.append(told | shown)
    return rows


def _panel(claim: Claim, metric: Metric, setting: Mapping[str, typing.Any]) -> str:
    varied = [f"{100 * setting[name]:g} %" if name == "ratio" else f"{name} {setting[name]:g}" for name in claim.varied]
    return f"{', '.join([claim.text.removesuffix('.'), *varied])}: {metric.name}"


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`, a panel for each claim and metric; the band is what counts as level."""
    panels, labels = list(data.groupby("panel", sort=False)), list(data["label"].unique())
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(WIDTH, 2.5 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for ax, (panel, of_panel) in zip(grid, panels, strict=False):
        ax.set_title(textwrap.fill(panel, WRAP), loc="left", fontsize=8)
        _draw_panel(ax, of_panel, METRICS[of_panel["metric"].iloc[0]], labels)
    for ax in list(grid):
        ax.remove()
    log_axis(figure, data["rate"])
    legend(figure, labels)
    return figure


def _draw_panel(ax: Axes, rows: pd.DataFrame, metric: Metric, labels: list[str]) -> None:
    allowed = rows["margin"].iloc[0]
    ax.axhspan(1 / allowed if metric.log else -allowed, allowed, color="0.85", linewidth=0, zorder=0)
    ax.axhline(1 if metric.log else 0, color="0.4", linewidth=0.8, zorder=1)
    for label, curve in rows.sort_values("rate").groupby("label", sort=False):
        place = labels.index(label)
        style = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "capsize": 2.5}
        ends = np.abs(curve[["low", "high"]].sub(curve["ours"], axis=0)).T.to_numpy()
        x = curve["rate"] * SHIFT ** (place - len(labels) / 2)
        ax.errorbar(x, curve["ours"], yerr=ends, label=label, markersize=5, **style)
    ax.set(xlabel="peak learning rate", ylabel=NAMES[metric.name])
    if metric.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
