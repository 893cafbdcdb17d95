"""How figures look: one colour, marker and name per method, the same in every figure; text of at least 8 pt."""

import typing
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
import seaborn

WIDTH = 7.0  # inches: the text width of a two-column page
DPI = 200
PALETTE = seaborn.color_palette("colorblind")


@dataclass(frozen=True)
class Look:
    """How a series is drawn and what it is called."""

    label: str
    colour: typing.Any
    marker: str = "o"
    line: str = "-"
    size: float = 5  # points
    filled: bool = True


LOOKS = {
    "dp-sapf-matrix": Look("DP-SAPF, matrices", PALETTE[0], "o"),
    "dp-sapf-layer": Look("DP-SAPF, layers", PALETTE[4], "s", size=8, filled=False),
    "dp-lora": Look("DP-LoRA", PALETTE[1], "D", "--"),
    "dp-full": Look("DP-Finetune (full UNet)", PALETTE[2], "^", "--"),
    "no-finetune": Look("no fine-tuning (floor)", PALETTE[7], "v", ":"),
    "real": Look("real images (ceiling)", "black", "*", ":"),
}
ORDER = tuple(LOOKS)


def look_of(series: str) -> Look:
    """Return the look of a series; a KeyError means that a new method has none yet."""
    return LOOKS[series]


def theme() -> AbstractContextManager:
    """Apply fonts, grid and line widths for as long as the context lasts."""
    sizes = dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 9)
    sizes |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8)
    lines = {"lines.linewidth": 1.5, "axes.linewidth": 0.8, "grid.linewidth": 0.5}
    fonts = {"pdf.fonttype": 42, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
    return mpl.rc_context(seaborn.axes_style("whitegrid") | sizes | lines | fonts)
