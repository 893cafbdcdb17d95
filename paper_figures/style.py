"""How figures look: one colour, marker and name per method, the same in every figure; text of at least 8 pt."""

import dataclasses
import typing
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
import seaborn

from dpsapf.experiment.methods import METHODS as KNOWN

WIDTH = 7.0  # inches: the text width of a two-column page
DPI = 200
PALETTE = seaborn.color_palette("colorblind")


@dataclass(frozen=True)
class Look:
    """How a series is drawn and what it is called."""

    label: str
    colour: typing.Any
    marker: str = "o"
    line: typing.Any = "-"
    size: float = 5  # points
    filled: bool = True


METHODS = {
    "dp-sapf": Look("DP-SAPF", PALETTE[0], "o"),
    "dp-lora": Look("DP-LoRA", PALETTE[1], "D", "--"),
    "dp-full": Look("DP-Finetune (full UNet)", PALETTE[2], "^", "--"),
    "dp-ldm": Look("DP-LDM (attention)", PALETTE[9], "<", "--"),
    "random": Look("random", PALETTE[8], "X", "--"),
    "noisy": Look("noisy rest", PALETTE[3], "p", "--"),
    "no-lora": Look("without LoRA", PALETTE[5], "d", "--"),
    "all-params": Look("all parameters", PALETTE[6], "h", "--"),
    "dp-bitfit": Look("DP-BiTFiT (biases)", PALETTE[4], ">", "--"),
    "proxy": Look("other images' scores", "slateblue", "d", "-."),
    "pe": Look("Private Evolution", "olive", "*", "--"),
    "aug-pe": Look("Aug-PE", "saddlebrown", "H", "--"),
    "clip-only": Look("clipping, no noise", "teal", "P", "--"),
    "no-dp": Look("without DP", "darkslateblue", "P", "--"),
    "no-finetune": Look("no fine-tuning (floor)", PALETTE[7], "v", ":"),
    "real": Look("real images (ceiling)", "black", "*", ":"),
}
PROXIES = {  # what else method proxy selects by
    "ceiling": Look("own noiseless scores (no guarantee)", "black", "d", ":"),
    "fragility": Look("public fragility", "darkorange", "d", "-."),
}
SCORES = {
    "energy": Look("energy", PALETTE[0], "o"),
    "norm": Look("norm", PALETTE[1], "D", "--"),
    "vote": Look("vote", PALETTE[2], "^", "-."),
    "share": Look("share", PALETTE[4], "s", (0, (5, 1))),
    "signal": Look("signal", PALETTE[3], "v", (0, (1, 1))),
}
EXTERNAL = {  # methods of other groups, in the order of the config: of each the table has a label
    f"external-{place}": Look(f"made elsewhere, {place}", colour, marker, (0, (3, 1, 1, 1)))
    for place, (colour, marker) in enumerate(
        [("crimson", "o"), ("darkgoldenrod", "D"), ("darkgreen", "^"), ("indigo", "<"), ("deeppink", "s"), ("dimgray", "P")], 1
    )
}
PUBLISHED = Look("DP-SAPF, matrices (published by the paper)", "0.35", "x", (0, (1, 1)))
LEVELS = {"matrix": "matrices", "layer": "layers", "block": "blocks"}


def _looks() -> dict[str, Look]:
    """Give each method and level its look: layers and blocks are hollow, DP-SAPF's in colours of their own."""
    looks = {}
    for name, look in (METHODS | PROXIES).items():
        if name not in PROXIES and (name not in KNOWN or "level" not in KNOWN[name].uses):
            looks[name] = look
            continue
        hollow = {"layer": {"marker": "s", "size": 8, "filled": False}, "block": {"marker": "8", "size": 9, "filled": False}}
        for level, units in LEVELS.items():
            changes = hollow.get(level, {}) | {"label": f"{look.label}, {units}"}
            looks[f"{name}-{level}"] = dataclasses.replace(look, **changes)
    return looks | {"dp-sapf-layer": dataclasses.replace(looks["dp-sapf-layer"], colour=PALETTE[4])} | EXTERNAL


LOOKS = _looks()
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
