"""The paper's claims, as data: what is compared with what, where, and what would be a reproduction of it.

A claim says how one side stands to the other in a metric: ``ahead`` (better), ``behind`` (worse) or ``level`` (neither, by more
than the margin of `paper_figures.margins`). `paper_figures.judging` judges all of them by one rule; no claim has code of its own.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from paper_figures.published import MATRICES, RATIO

Expected = typing.Literal["ahead", "behind", "level"]
EMBEDDED = "No data or model that is packaged decides it; {config} would."


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes:
        name: for a reader.
        column: of the compared rows.
        better: 1 if more of it is better, -1 if less.
        unit: of a difference, for a reader.
        log: True if differences are of logs, and are shown as factors.
        exact: True if it is counted, not estimated: all runs must agree, and one seed is enough.
        number_margin: what a published number and ours may differ by, in the unit of the difference (its log, if ``log``).
    """

    name: str
    column: str
    better: int
    unit: str = ""
    log: bool = False
    exact: bool = False
    number_margin: float = math.nan


FACTOR = "as a factor"
ACCURACY = Metric("accuracy", "accuracy_pct", 1, "points", number_margin=2)
FID = Metric("FID", "fid", -1, FACTOR, log=True, number_margin=math.log(1.1))
PARAMETERS = Metric("trained parameters", "trainable_parameters", -1, "parameters", exact=True)
SECONDS = Metric("fine-tuning time", "finetune_seconds", -1, FACTOR, log=True)
MEMORY = Metric("peak memory", "peak_memory_mb", -1, FACTOR, log=True)
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
        same: columns that both sides must share, beside dataset and public model.
        apart: columns that tell comparisons apart, beside dataset and public model.
        table: ``runs``, or ``places``: mean scores of the outer and the inner blocks.
        over_rates: True if it is about some learning rate, and so judged at each one that was tried.
        published: columns and values of the published tables that are on either side, with the table's name first.
        quoted: the largest effect that the paper's text names, where no published table has both sides; in the metric's unit.
        needs: what would decide it, where no packaged data or model does.
    """

    id: str
    text: str
    source: str
    ours: Mapping[str, object]
    theirs: Mapping[str, object]
    expected: Expected = "ahead"
    metrics: tuple[Metric, ...] = (ACCURACY, FID)
    same: tuple[str, ...] = ("epsilon", "kind")
    apart: tuple[str, ...] = ("epsilon", "kind")
    table: str = "runs"
    over_rates: bool = False
    published: tuple[str, Mapping[str, object], Mapping[str, object]] | None = None
    quoted: Mapping[str, float] = field(default_factory=dict)
    needs: str = ""

    @property
    def varied(self) -> dict[str, tuple]:
        """Columns of ``ours`` that have several values, all of which the claim is about, and those values."""
        several = {column: tuple(one for one in value if one is not None) for column, value in self.ours.items() if _many(value)}
        return {column: values for column, values in several.items() if len(values) > 1}


def _many(value: object) -> bool:
    return isinstance(value, tuple)


TOP = MATRICES | {"ratio": RATIO, "rule": ("top", None), "mechanism": ("gaussian", None)}
UNET, TRANSFORMER = {"network": "unet"}, {"network": "transformer"}
GAUSSIAN = {"method": "dp-sapf", "mechanism": "gaussian"}


def _variant(id: str, name: str, text: str, **theirs: object) -> Claim:
    shown = ("variants", MATRICES, theirs)
    rows = {"level": "matrix", "ratio": RATIO} | theirs
    return Claim(id, text, f"figure of variants, {name}", TOP, rows, published=shown)


def _mechanism(name: str, text: str, needs: str = "") -> Claim:
    return Claim(
        name,
        text,
        "figure of transfer",
        TOP | {"mechanism": name},
        TOP,
        expected="level",
        published=("transfer", MATRICES | {"mechanism": name}, MATRICES | {"mechanism": "gaussian"}),
        needs=needs,
    )


CLAIMS = (
    Claim(
        "dp-lora",
        "DP-SAPF is ahead of DP-LoRA on every dataset.",
        "abstract",
        TOP | UNET,
        {"method": "dp-lora"},
        quoted={"accuracy": 31.5, "FID": math.log(1 - 0.831)},
    ),
    Claim(
        "resources",
        "DP-SAPF needs less than training all attention matrices.",
        "abstract",
        TOP | UNET,
        {"method": "dp-lora"},
        metrics=(PARAMETERS, SECONDS, MEMORY),
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
        published=("selection_ratio", {"ratio": (0.2, 0.4, 0.5)}, {"ratio": RATIO}),
    ),
    Claim(
        "collapse",
        "At 70 % of the matrices training collapses: images are worse than the public model's own.",
        "figure of selection ratios",
        TOP | {"ratio": 0.7},
        {"method": "no-finetune"},
        expected="behind",
        metrics=(FID,),
        same=(),
        apart=("epsilon", "rate"),
        over_rates=True,
    ),
    Claim(
        "collapse-of-more",
        "At 70 % of the matrices images are worse than at 30 %.",
        "figure of selection ratios",
        TOP | {"ratio": 0.7},
        TOP,
        expected="behind",
        metrics=(FID,),
        same=("epsilon", "rate"),
        apart=("epsilon", "rate"),
        over_rates=True,
        published=("selection_ratio", {"ratio": 0.7}, {"ratio": RATIO}),
    ),
    Claim(
        "edges",
        "Gradients are larger near the network's input and output than inside.",
        "figure of saliency by block",
        {"place": "outer"},
        {"place": "inner"},
        metrics=(SALIENCY,),
        same=(),
        apart=(),
        table="places",
    ),
    Claim(
        "selection-noise",
        "The noise of the selection, sigma_s from 5 to 25, hardly matters.",
        "figure of sigma_s",
        TOP | {"sigma_s": (10.0, 20.0, 25.0)},
        TOP | {"sigma_s": 5.0},
        expected="level",
    ),
    _mechanism("exponential", "The exponential mechanism selects as well as Gaussian noise."),
    _mechanism(
        "ptr",
        "Propose-test-release selects as well as Gaussian noise.",
        "At a few thousand images propose-test-release refuses every selection. " + EMBEDDED.format(config="config/paper.yaml"),
    ),
    Claim(
        "transformer",
        "On a diffusion transformer DP-SAPF is ahead of DP-LoRA.",
        "figure of transfer",
        GAUSSIAN | TRANSFORMER | {"level": ("matrix", "block"), "ratio": RATIO, "rule": "top"},
        {"method": "dp-lora"},
        published=("transfer", {"method": "dp-sapf", "level": "block"}, {"method": "dp-lora"}),
        needs=EMBEDDED.format(config="config/paper-dit.yaml"),
    ),
)
