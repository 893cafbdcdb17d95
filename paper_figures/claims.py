"""The paper's claims, as data: what is compared with what, where, and what would be a reproduction of it.

A claim says how one side stands to the other in a metric: ``ahead`` (better), ``behind`` (worse) or ``level`` (as good, within
the metric's margin). `paper_figures.verdicts` judges all of them by one rule; no claim has code of its own.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from paper_figures.published import MATRICES, RATIO

Expected = typing.Literal["ahead", "behind", "level"]


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes:
        name: for a reader.
        column: of the compared rows.
        better: 1 if more of it is better, -1 if less.
        unit: of a difference, for a reader.
        log: True if differences are of logs, and are shown as factors.
        exact: True if it is counted, not estimated: every pair decides, and one seed is enough.
        margin: what two values may differ by and still be level, in the unit of the difference (its log, if ``log``).
        number_margin: the same for a published number and ours.
    """

    name: str
    column: str
    better: int
    unit: str = ""
    log: bool = False
    exact: bool = False
    margin: float = math.nan
    number_margin: float = math.nan


ACCURACY = Metric("accuracy", "accuracy_pct", 1, "points", margin=5, number_margin=2)
FID = Metric("FID", "fid", -1)
FID_FACTOR = Metric("FID", "fid", -1, "as a factor", log=True, margin=math.log(4 / 3), number_margin=math.log(1.1))
PARAMETERS = Metric("trained parameters", "trainable_parameters", -1, "parameters", exact=True)
SALIENCY = Metric("released score per matrix", "relative_score", 1, "of the mean score")


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        id: short name.
        text: the claim, in one sentence.
        source: where the paper says or shows it.
        ours: what rows are on one side: column to value, to a tuple of values, or to None for empty.
        theirs: what rows are on the other side.
        expected: how ``ours`` stands to ``theirs``.
        metrics: what it is judged in, each apart.
        same: columns that both sides must share, beside dataset, public model and seed.
        table: ``runs``, or ``places``: mean scores of the outer and the inner blocks.
        published: columns and values of the published tables that are on either side, with the table's name first.
        quoted: what the paper says of a metric, where no published table has both sides; or what its values are of.
    """

    id: str
    text: str
    source: str
    ours: Mapping[str, object]
    theirs: Mapping[str, object]
    expected: Expected = "ahead"
    metrics: tuple[Metric, ...] = (ACCURACY, FID)
    same: tuple[str, ...] = ("epsilon", "learning_rate")
    table: str = "runs"
    published: tuple[str, Mapping[str, object], Mapping[str, object]] | None = None
    quoted: Mapping[str, str] = field(default_factory=dict)

    @property
    def varied(self) -> list[str]:
        """Columns that tell the claim's comparisons apart, beside dataset, public model, epsilon and learning rate."""
        several = [column for column, value in self.ours.items() if isinstance(value, tuple) and len({*value} - {None}) > 1]
        return several + [column for column in self.same if column not in ("epsilon", "learning_rate")]


TOP = MATRICES | {"ratio": RATIO, "rule": ("top", None), "mechanism": ("gaussian", None)}
UNET, TRANSFORMER = {"network": "unet"}, {"network": "transformer"}
GAUSSIAN = {"method": "dp-sapf", "mechanism": "gaussian"}


def _variant(id: str, name: str, text: str, **theirs: object) -> Claim:
    shown = ("variants", MATRICES, theirs)
    rows = {"level": "matrix", "ratio": RATIO} | theirs
    return Claim(id, text, f"figure of variants, {name}", TOP, rows, published=shown)


CLAIMS = (
    Claim(
        "dp-lora",
        "DP-SAPF is ahead of DP-LoRA on every dataset.",
        "abstract",
        TOP | UNET,
        {"method": "dp-lora"},
        quoted={"accuracy": "up by as much as 31.5 %", "FID": "down by as much as 83.1 %"},
    ),
    Claim(
        "parameters",
        "DP-SAPF trains fewer parameters than DP-LoRA.",
        "method: 30 % of the attention matrices",
        TOP | UNET,
        {"method": "dp-lora"},
        metrics=(PARAMETERS,),
    ),
    _variant("random", "Random", "DP-SAPF is ahead of as many matrices at random.", method="random"),
    _variant("layers", "Layer-Level", "Matrices are ahead of whole layers.", method="dp-sapf", level="layer"),
    _variant("noisy", "Noisy", "Noise in the matrices that were not selected harms.", method="noisy"),
    _variant("no-lora", "w/o LoRA", "Training the selected matrices without LoRA is behind.", method="no-lora"),
    _variant("all-params", "All Parameter", "Selecting among all parameters is behind.", method="all-params"),
    Claim(
        "stable",
        "Utility is stable from 20 to 50 % of the matrices.",
        "figure of selection ratios",
        TOP | {"ratio": (0.2, 0.4, 0.5)},
        TOP,
        expected="level",
        metrics=(ACCURACY, FID_FACTOR),
        published=("selection_ratio", {"ratio": (0.2, 0.4, 0.5)}, {"ratio": RATIO}),
    ),
    Claim(
        "collapse",
        "At 70 % of the matrices training collapses: images are worse than the public model's own.",
        "figure of selection ratios",
        TOP | {"ratio": 0.7},
        {"method": "no-finetune"},
        expected="behind",
        metrics=(FID_FACTOR,),
        same=(),
        published=("selection_ratio", {"ratio": 0.7}, {"ratio": RATIO}),
        quoted={"FID": "of 30 %'s"},
    ),
    Claim(
        "edges",
        "Gradients are larger near the network's input and output than inside.",
        "figure of saliency by block",
        {"place": "outer"},
        {"place": "inner"},
        metrics=(SALIENCY,),
        same=("score", "sigma_s"),
        table="places",
    ),
    Claim(
        "selection-noise",
        "The noise of the selection, sigma_s from 5 to 25, hardly matters.",
        "figure of sigma_s",
        TOP | {"sigma_s": (10.0, 20.0, 25.0)},
        TOP | {"sigma_s": 5.0},
        expected="level",
        metrics=(ACCURACY, FID_FACTOR),
    ),
    Claim(
        "mechanisms",
        "Other mechanisms of selection do as well as Gaussian noise.",
        "figure of transfer",
        TOP | {"mechanism": ("exponential", "ptr")},
        TOP,
        expected="level",
        metrics=(ACCURACY, FID_FACTOR),
        published=("transfer", MATRICES | {"mechanism": ("exponential", "ptr")}, MATRICES | {"mechanism": "gaussian"}),
    ),
    Claim(
        "transformer",
        "On a diffusion transformer DP-SAPF is ahead of DP-LoRA.",
        "figure of transfer",
        GAUSSIAN | TRANSFORMER | {"level": ("matrix", "block"), "ratio": RATIO, "rule": "top"},
        {"method": "dp-lora"},
        published=("transfer", {"method": "dp-sapf", "level": "block"}, {"method": "dp-lora"}),
    ),
)
