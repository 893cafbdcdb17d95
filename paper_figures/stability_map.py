"""Learning rate against the share of matrices that is trained: where training works, and where it collapses."""

import math

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from dpsapf.experiment.columns import SEEDS
from dpsapf.experiment.runs import number
from paper_figures.collapse import edge, excess
from paper_figures.learning_rates import CHOSEN, PANEL, WHOLE, sweeps, target
from paper_figures.results import GROUP, Results
from paper_figures.style import WIDTH

COLOURS = ("#eaf6ff", "#a9cfe8", "#b9b3ac", "#b4502f", "#3d0012")  # better to worse, ever darker: grey scale keeps the order
SCALE = LinearSegmentedColormap.from_list("better to worse", COLOURS)
NARROWEST = 0.3  # inches: a cell that holds two short numbers of 8 points
LETTER = 0.07  # inches: width of a digit of 8 points
ROW, MARGIN, SIDE = 0.32, 0.4, 1.0  # inches: height of a ratio; title or tick labels of a panel; labels on the left
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
TICKS = (1 / 50, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1, 2, 5, 10, 20, 50)


def prepare(results: Results) -> pd.DataFrame:
    """Average FID and accuracy over seeds at every learning rate and ratio, and find the edges of collapse.

    Returns:
        One row per dataset, public model, epsilon, way of choosing (``panel``; what trains all matrices, ratio 1,
        belongs to each), ratio and learning rate ``rate``: seeds, means and sample standard deviations (empty for
        one seed) of FID and accuracy (%), those of the floor, FID over the floor's, accuracy less the floor's
        (points), whether the setting has collapsed, and its ratio's ``edge`` with ``edge_sign`` (see
        `paper_figures.collapse`).

    Raises:
        MissingStudy: nothing was swept; see `paper_figures.learning_rates.sweeps`.
    """
    runs, floor = sweeps(results)
    floors = dict(list(floor.groupby(GROUP)))
    cells = [_cell(dict(zip(_KEYS, key, strict=True)), rows, floors[key[:2]]) for key, rows in runs.groupby(_KEYS, sort=False)]
    table = pd.DataFrame(cells)
    lines = table.groupby([*PANEL, "way", "ratio"], sort=False)
    table = table.join(lines[["rate", "excess"]].apply(_edge), on=[*PANEL, "way", "ratio"])
    panels = [_panel(rows, way) for _, rows in table.groupby(PANEL, sort=False) for way in CHOSEN if (rows["way"] == way).any()]
    return pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)


_KEYS = [*PANEL, "way", "ratio", "rate"]


def _cell(key: dict, rows: pd.DataFrame, floor: pd.DataFrame) -> dict:
    over = excess(rows["fid"].to_list(), floor["fid"].to_list())
    fid, accuracy = rows["fid"], 100 * rows["accuracy"]
    floors = {"floor_fid": floor["fid"].mean(), "floor_accuracy_pct": 100 * floor["accuracy"].mean()}
    means = {"fid": fid.mean(), "fid_sd": fid.std(), "accuracy_pct": accuracy.mean(), "accuracy_pct_sd": accuracy.std()}
    compared = {
        "fid_over_floor": means["fid"] / floors["floor_fid"],
        "accuracy_less_floor": means["accuracy_pct"] - floors["floor_accuracy_pct"],
    }
    return key | {SEEDS: len(rows)} | means | floors | compared | {"excess": over, "collapsed": over > 0}


def _edge(line: pd.DataFrame) -> pd.Series:
    found = edge(line["rate"], line["excess"])
    return pd.Series({"edge": found.value, "edge_sign": found.sign})


def _panel(rows: pd.DataFrame, way: str) -> pd.DataFrame:
    rows = rows[rows["way"].isin([way, WHOLE])]
    return rows.assign(panel=CHOSEN[way]).sort_values(["ratio", "rate"], ascending=[False, True])


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`, coloured by FID over the floor's."""
    values = np.log2(data["fid_over_floor"])
    figure, bar = _figure(data.assign(shade=values, text="fid", floor=data["floor_fid"]), SCALE)
    ticks = [tick for tick in TICKS if values.min() <= math.log2(tick) <= values.max()]
    bar.set_label(f"FID over the floor's ({data['protocol'].iloc[0]})")
    bar.set_ticks(np.log2(ticks), labels=[number(tick) for tick in ticks])
    return figure


def draw_accuracy(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`, coloured by accuracy less the floor's; the edges are FID's."""
    shaded = data.assign(shade=data["accuracy_less_floor"], text="accuracy_pct", floor=data["floor_accuracy_pct"])
    figure, bar = _figure(shaded, SCALE.reversed())
    bar.set_label("accuracy less the floor's (points)")
    return figure


def _figure(data: pd.DataFrame, scale: LinearSegmentedColormap) -> tuple[Figure, Colorbar]:
    settings, ways = list(data.groupby(PANEL, sort=False)), list(data["panel"].unique())
    height = sum(ROW * rows["ratio"].nunique() + MARGIN for _, rows in settings)
    figure = Figure(figsize=(WIDTH, height + 1.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, wspace=0, hspace=0.03, rect=(0, 0, 0.985, 1))  # the gaps hold arrows
    grid = figure.subplots(len(settings), len(ways), squeeze=False)
    norm = CenteredNorm(0, max(data["shade"].abs().max(), 0.1))
    for axes, (key, rows) in zip(grid, settings, strict=True):
        for ax, way in zip(axes, ways, strict=True):
            _draw_panel(ax, rows[rows["panel"] == way], scale, norm)
        axes[0].set_ylabel(_name(dict(zip(PANEL, key, strict=True)), rows))
    for column, way in zip(grid.T, ways, strict=True):
        shown = [ax for ax in column if ax.get_visible()]
        shown[0].set_title(way)
        shown[-1].set_xlabel("learning rate")
    for first, *others in grid:
        for ax in others:
            ax.tick_params(labelleft=_ratios(ax) != _ratios(first))
    figure.supylabel("matrices that are trained (%)", fontsize=9)
    explained = _EXPLAINED if any(ax.texts for ax in grid.flat) else _EXPLAINED[:2]
    figure.legend(handles=explained, loc="outside lower center", ncols=3, frameon=False, handlelength=1.5, columnspacing=1)
    bar = figure.colorbar(ScalarMappable(norm, scale), ax=grid, location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.set_xlim(min(data["shade"].min(), 0), max(data["shade"].max(), 0))
    return figure, bar


def _ratios(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


_EXPLAINED = [
    Line2D([], [], color="black", linewidth=2, label="edge of collapse"),
    Line2D([], [], color="black", linestyle="none", marker=">", markersize=5, label="beyond the rates that were tried"),
    Line2D([], [], linestyle="none", label="numbers: mean, and below it the sd over seeds"),
]


def _name(panel: dict[str, object], rows: pd.DataFrame) -> str:
    floor = rows["floor"].iloc[0]
    return f"{panel['dataset']}, {panel['public_model']}\n{target(panel)}, floor {floor:.{_places(floor)}f}"


def _draw_panel(ax: Axes, rows: pd.DataFrame, scale: LinearSegmentedColormap, norm: CenteredNorm) -> None:
    ax.grid(visible=False)
    ax.set_visible(len(rows) > 0)
    if rows.empty:
        return
    cells = rows.pivot(index="ratio", columns="rate", values="shade")
    borders, height = _borders(cells.columns.to_numpy(float)), len(cells)
    ax.set_xscale("log")
    ax.pcolormesh(borders, np.arange(height + 1) - 0.5, cells, cmap=scale, norm=norm, edgecolors="white", linewidth=0.5)
    labels = [number(rate) for rate in cells.columns]
    ax.set_xticks(cells.columns, labels=labels, rotation=90 * (LETTER * max(map(len, labels)) > _width(borders)))
    ax.set_xticks([], minor=True)
    ax.set_yticks(range(height), labels=[number(round(100 * ratio, 6)) for ratio in cells.index])
    centres = dict(zip(cells.columns, np.sqrt(borders[1:] * borders[:-1]), strict=True))
    rows = rows.assign(place=rows["ratio"].map(list(cells.index).index), centre=rows["rate"].map(centres))
    _draw_edge(ax, rows.drop_duplicates("ratio").sort_values("place"), cells.columns.to_numpy(float), borders)
    if _width(borders) > NARROWEST:
        _write_numbers(ax, rows, scale, norm)


def _borders(rates: np.ndarray) -> np.ndarray:
    """Return the ends of the cells of increasing rates: geometric means, and as far out at both sides."""
    logs = np.log(rates)
    middles = (logs[1:] + logs[:-1]) / 2
    return np.exp([2 * logs[0] - middles[0], *middles, 2 * logs[-1] - middles[-1]])


def _width(borders: np.ndarray) -> float:
    """Return the width of the narrowest cell [inches], roughly."""
    widths = np.diff(np.log(borders))
    return (WIDTH - SIDE) / len(CHOSEN) * widths.min() / widths.sum()


def _write_numbers(ax: Axes, rows: pd.DataFrame, scale: LinearSegmentedColormap, norm: CenteredNorm) -> None:
    for row in rows.to_dict("records"):
        mean, spread = row[row["text"]], row[row["text"] + "_sd"]
        text = f"{mean:.{_places(mean)}f}" + ("" if math.isnan(spread) else f"\n{number(float(f'{spread:.1g}'))}")
        dark = np.dot(scale(norm(row["shade"]))[:3], LUMINANCE) < 0.5
        style = {"ha": "center", "va": "center", "fontsize": 8, "linespacing": 0.95}
        ax.text(row["centre"], row["place"], text, color="white" if dark else "black", in_layout=False, **style)


def _places(value: float) -> int:
    """Return how many decimals (0 to 2) show three digits."""
    return int(np.clip(2 - math.floor(math.log10(max(value, 1e-9))), 0, 2))


def _draw_edge(ax: Axes, lines: pd.DataFrame, rates: np.ndarray, borders: np.ndarray) -> None:
    """Draw a step between the last good and the first collapsed cell of every ratio, with arrows where there is none."""
    after = np.searchsorted(rates, lines["edge"], side="right")
    x = borders[np.where(lines["edge_sign"] == "<", 0, after)]
    steps = np.add.outer(lines["place"].to_numpy(), [-0.5, 0.5]).ravel()
    white = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    style = {"color": "black", "clip_on": False}
    drawn = ax.plot(np.repeat(x, 2), steps, linewidth=2, path_effects=white, solid_joinstyle="miter", **style)
    for sign, points in (("<", -5), (">", 5)):
        beyond = (lines["edge_sign"] == sign).to_numpy()
        outside = offset_copy(ax.transData, ax.figure, x=points, units="points")
        drawn += ax.plot(x[beyond], lines["place"][beyond], sign, markersize=5, transform=outside, **style)
    for line in drawn:
        line.set_in_layout(False)  # what stands out of the axes has room there
