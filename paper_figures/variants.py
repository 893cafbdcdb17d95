"""Accuracy and FID of DP-SAPF's variants at one epsilon, with the paper's published ones beside them."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.dots import dot_figure
from paper_figures.results import GROUP, MissingStudy, Results, floor_and_ceiling, name_of, rows_of, scores, strictly, with_labels
from paper_figures.style import ORDER, look_of

REFERENCE = Path(__file__).parent / "reference" / "variants.csv"
VARIANTS = ("random", "noisy", "no-lora", "all-params", "dp-ldm", "no-dp")
ENOUGH = 3  # variants that a dataset needs to be drawn
PUBLISHED = {
    "DP-SAPF": "dp-sapf-matrix",
    "Layer-Level": "dp-sapf-layer",
    "Random": "random-matrix",
    "Noisy": "noisy-matrix",
    "w/o LoRA": "no-lora-matrix",
    "All Parameter": "all-params-matrix",
}


def prepare(results: Results) -> pd.DataFrame:
    """Collect every method at the headline ratio, sigma_s and epsilon, and the published variants.

    Returns:
        One row per panel (dataset and public model) and method: ``series``, ``label``, ``source`` (the evaluation
        protocol, or ``published``), ``reference`` (floor and ceiling), accuracy (%) and FID with 95 % half widths, empty
        for one seed.

    Raises:
        MissingStudy: no dataset has three of the variants.
    """
    table = strictly(results.summary, results, "ratio", "sigma_s", "epsilon")
    counts = table[table["method"].isin(VARIANTS)].groupby(GROUP, sort=False)["method"].nunique()
    studied = list(counts.index[counts >= ENOUGH])
    if not studied:
        raise MissingStudy(f"no dataset has runs of {ENOUGH} of the variants {', '.join(VARIANTS)}")
    panels = [_panel(table, results, *key) for key in studied]
    return pd.concat([*panels, _published()], ignore_index=True)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    trained = rows_of(table, dataset, public_model)
    trained = with_labels(trained[trained["method"] != "no-finetune"], results)
    rows = pd.concat([trained[["series"]], scores(trained)], axis=1).assign(reference=False)
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    rows = pd.concat([rows, bounds[rows.columns]], ignore_index=True)
    epsilon, percent = number(results.headline["epsilon"]), number(100 * results.headline["ratio"])
    title = f"{dataset}, {public_model}, ε = {epsilon}, {percent} % selected"
    return rows.assign(panel=title, source=results.protocol, label=[name_of(name, results) for name in rows["series"]])


def _published() -> pd.DataFrame:
    table = pd.read_csv(REFERENCE)
    series = table["variant"].map(PUBLISHED)
    titles = table["dataset"] + ", " + table["public_model"] + ", ε = " + table["epsilon"].map(number)
    rows = table[["accuracy_pct", "fid"]].assign(panel="Published (another model and scale): " + titles, source="published")
    rows = rows.assign(series=series, reference=False, label=[look_of(name).label for name in series])
    return rows.sort_values("series", key=lambda names: names.map(ORDER.index), kind="stable").sort_values("panel", kind="stable")


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`."""
    return dot_figure(data)
