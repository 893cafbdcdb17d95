"""The paper's published curves, in the style of this suite's own, so that shapes can be compared."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.curves import curve_figure, log_axis
from paper_figures.results import Results
from paper_figures.style import PALETTE, Look

REFERENCE = Path(__file__).parent / "reference"
MARKERS = "oDs^vP"


def prepare_ratio(_: Results) -> pd.DataFrame:
    """Read the published ratio sweep; ``x`` is the ratio in %."""
    table = pd.read_csv(REFERENCE / "selection_ratio.csv")
    panels = [f"{dataset}, ε = {number(epsilon)}" for dataset, epsilon in zip(table["dataset"], table["epsilon"], strict=True)]
    return _published(table, panels, 100 * table["selection_ratio"])


def prepare_epsilon(_: Results) -> pd.DataFrame:
    """Read the published epsilon sweep; ``x`` is the target epsilon."""
    table = pd.read_csv(REFERENCE / "epsilon_sweep.csv")
    ratios = zip(table["dataset"], table["selection_ratio"], strict=True)
    return _published(table, [f"{dataset}, matrices {number(100 * ratio)} %" for dataset, ratio in ratios], table["epsilon"])


def _published(table: pd.DataFrame, panels: list[str], x: pd.Series) -> pd.DataFrame:
    rows = table[["accuracy_pct", "fid"]].assign(x=x, reference=False, series=table["public_model"])
    return rows.assign(label=rows["series"] + " (published)", panel=[f"Published: {panel}" for panel in panels])


def draw_ratio(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare_ratio`."""
    return curve_figure(data, _looks(data), "selected matrices (%)", "published")


def draw_epsilon(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare_epsilon` on a logarithmic axis."""
    figure = curve_figure(data, _looks(data), "target ε", "published")
    log_axis(figure, data["x"])
    return figure


def _looks(data: pd.DataFrame) -> dict[str, Look]:
    names = data["series"].unique()
    return {name: Look(name, PALETTE[index], MARKERS[index]) for index, name in enumerate(names)}
