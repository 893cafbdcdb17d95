"""Accuracy and FID against the share of attention matrices that is trained (the paper's ratio figure)."""

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.curves import curve_figure
from paper_figures.published import beside
from paper_figures.results import GROUP, MissingStudy, Results, floor_and_ceiling, rows_of, scores, strictly, with_labels
from paper_figures.style import LOOKS, PUBLISHED, look_of


def prepare(results: Results) -> pd.DataFrame:
    """Collect the ratio sweeps at the headline epsilon and sigma_s, and what they are compared with.

    Returns:
        Rows for `paper_figures.curves.curve_figure`; ``x`` is the ratio in %. DP-LoRA, floor and ceiling are references.
        The published curve stands beside ours where the paper has the dataset and public model.

    Raises:
        MissingStudy: no dataset has two ratios.
    """
    table = strictly(results.summary, results, "epsilon", "sigma_s")
    ratios = table.groupby(GROUP, sort=False)["ratio"].nunique()
    swept = list(ratios.index[ratios > 1])
    if not swept:
        raise MissingStudy("no dataset has runs at two selection ratios")
    panels = [_panel(rows_of(table, *key), results, *key) for key in swept]
    return pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    compared = with_labels(table[table["method"].isin(["dp-sapf", "dp-lora"])], results)
    rows = pd.concat([compared[["series", "ratio"]], scores(compared)], axis=1)
    rows["reference"] = rows["series"] == "dp-lora"
    rows["label"] = [look_of(name).label + " (100 %)" * (name == "dp-lora") for name in rows["series"]]
    rows["x"] = 100 * rows["ratio"].fillna(1.0)
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    title = f"{dataset}, {public_model}, ε = {number(results.headline['epsilon'])}"
    theirs = beside("selection_ratio", "ratio", dataset, public_model, epsilon=results.headline["epsilon"])
    rows = pd.concat([rows.drop(columns="ratio"), theirs.assign(x=100 * theirs["x"])])
    return pd.concat([rows, bounds], ignore_index=True).assign(panel=title)


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`."""
    return curve_figure(
        data, LOOKS | {"published": PUBLISHED}, "selected matrices or attention modules (%)", data["protocol"].iloc[0]
    )
