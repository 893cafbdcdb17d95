"""What the paper published, in this suite's names: the values of its figures, and where they can be compared with ours."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from paper_figures.style import PUBLISHED

REFERENCE = Path(__file__).parent / "reference"
DATASETS = {"CIFAR-10": "cifar10", "OCTMNIST": "octmnist", "CelebA": "celeba", "Camelyon": "camelyon17"}
PUBLIC_MODELS = {
    "SD-v1-5": "sd-v1-5",
    "SD-2-1-base": "sd-2-1-base",
    "Realistic-v6": "realistic-vision-v6",
    "Prompt2med": "prompt2med",
}
TRANSFORMERS = ("z-image",)  # the public models that are no UNet
PROTOCOLS = ("paper-text-v1", "paper-code-v1")  # under which a measured number may be set beside a published one
MATRICES = {"method": "dp-sapf", "level": "matrix"}
VARIANTS = {
    "DP-SAPF": MATRICES,
    "Layer-Level": {"method": "dp-sapf", "level": "layer"},
    "Random": {"method": "random", "level": "matrix"},
    "Noisy": {"method": "noisy", "level": "matrix"},
    "w/o LoRA": {"method": "no-lora", "level": "matrix"},
    "All Parameter": {"method": "all-params", "level": "matrix"},
}
TRANSFER = {
    "DP-LoRA": {"method": "dp-lora", "public_model": "z-image"},
    "DP-SAPF": {"method": "dp-sapf", "level": "block", "public_model": "z-image"},  # blocks: as the reference code selects
    "Exponential mechanism": MATRICES | {"mechanism": "exponential", "public_model": "sd-v1-5"},
    "Propose-test-release": MATRICES | {"mechanism": "ptr", "public_model": "sd-v1-5"},
    "Gaussian (DP-SAPF)": MATRICES | {"mechanism": "gaussian", "public_model": "sd-v1-5"},
}
RATIO = 0.3  # share of the matrices that the paper's other studies select
KEYS = ("dataset", "public_model", "method", "level", "mechanism", "ratio", "epsilon")
VALUES = ("accuracy_pct", "fid")
TABLES = ("variants", "epsilon_sweep", "selection_ratio", "transfer")


def published(table: str) -> pd.DataFrame:
    """Read a table of published values.

    Args:
        table: of `TABLES`.

    Returns:
        One row per published setting: ``table``, `KEYS` as in runs.csv (empty: the method ignores the axis), ``name`` (as in
        the paper) and `VALUES`: accuracy in %, and FID.
    """
    rows = pd.read_csv(REFERENCE / f"{table}.csv")
    described = pd.DataFrame([_setting(row) for row in rows.to_dict("records")])
    values = rows[list(VALUES)].assign(table=table, epsilon=rows["epsilon"].astype(float))
    return pd.concat([values, described], axis=1)[["table", "name", *KEYS, *VALUES]]


def _setting(row: Mapping[str, object]) -> dict[str, object]:
    """Say which runs of this suite are of the published row's setting."""
    name = row.get("variant", row.get("method", "DP-SAPF"))
    setting = TRANSFER[name] if "panel" in row else VARIANTS[name]
    model = PUBLIC_MODELS[row["public_model"]] if "public_model" in row else setting["public_model"]
    ratio = row.get("selection_ratio", RATIO if "level" in setting else None)
    selects = setting["method"] not in ("dp-lora", "random")
    known = {"mechanism": "gaussian" if selects else None, "level": None, "ratio": ratio} | setting
    return known | {"name": name, "dataset": DATASETS[row["dataset"]], "public_model": model}


def beside(table: str, x: str, dataset: str, public_model: str, **held: float) -> pd.DataFrame:
    """Return the published curve of a dataset and public model, to be drawn beside ours; no rows if the paper has none.

    Args:
        table: of `TABLES`.
        x: column of `KEYS` that is the axis.
        dataset: as in runs.csv.
        public_model: likewise.
        held: values of the published curve's other axes.

    Returns:
        Rows for `paper_figures.curves.curve_figure`, but for ``panel``; ``x`` in the unit of the column.
    """
    rows = published(table)
    for name, value in {"dataset": dataset, "public_model": public_model, **held}.items():
        rows = rows[rows[name] == value]
    return rows[list(VALUES)].assign(x=rows[x], series="published", label=PUBLISHED.label, reference=False)
