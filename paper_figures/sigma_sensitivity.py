"""Accuracy and FID against sigma_s, the noise multiplier of the saliency release, at one target epsilon."""

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.curves import curve_figure, log_axis
from paper_figures.results import GROUP, MissingStudy, Results, floor_and_ceiling, rows_of, scores, strictly, with_labels
from paper_figures.style import LOOKS, look_of


def prepare(results: Results) -> pd.DataFrame:
    """Collect the sigma_s sweeps at the headline ratio and epsilon, and what they are compared with.

    The target epsilon covers the selection: less noise on the scores means more noise in DP-SGD.

    Returns:
        Rows for `paper_figures.curves.curve_figure`; ``x`` is sigma_s. DP-LoRA, floor and ceiling are references.

    Raises:
        MissingStudy: no dataset has two values of sigma_s.
    """
    table = strictly(results.summary, results, "ratio", "epsilon")
    table = table[table["sigma_s"] != "auto"].astype({"sigma_s": float})  # that has no place on the axis
    values = table.groupby(GROUP, sort=False)["sigma_s"].nunique()
    swept = list(values.index[values > 1])
    if not swept:
        raise MissingStudy("no dataset has runs at two values of sigma_s")
    panels = [_panel(rows_of(table, *key), results, *key) for key in swept]
    return pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    values = table.groupby(["method", "level"])["sigma_s"].transform("nunique")
    swept = (table["method"] == "dp-sapf") & (values > 1)
    compared = with_labels(table[swept | (table["method"] == "dp-lora")], results)
    rows = pd.concat([compared[["series", "sigma_s"]], scores(compared)], axis=1)
    rows["reference"] = rows["series"] == "dp-lora"
    rows["label"] = [look_of(name).label for name in rows["series"]]
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    epsilon, percent = number(results.headline["epsilon"]), number(100 * results.headline["ratio"])
    title = f"{dataset}, {public_model}, ε = {epsilon}, {percent} % selected"
    return pd.concat([rows.rename(columns={"sigma_s": "x"}), bounds], ignore_index=True).assign(panel=title)


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare` on a logarithmic axis with the values of sigma_s that were run."""
    figure = curve_figure(data, LOOKS, "noise multiplier of the saliency release σ_s", data["protocol"].iloc[0])
    log_axis(figure, data["x"])
    return figure
