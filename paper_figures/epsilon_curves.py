"""Accuracy and FID against the privacy budget."""

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number, written
from paper_figures.curves import curve_figure, log_axis
from paper_figures.published import beside
from paper_figures.results import (
    GROUP,
    MissingStudy,
    Results,
    at_headline,
    floor_and_ceiling,
    name_of,
    rows_of,
    scores,
    spent_note_of,
    with_labels,
    with_spent_note,
)
from paper_figures.style import LOOKS, PUBLISHED
from paper_figures.variants import VARIANTS


def prepare(results: Results) -> pd.DataFrame:
    """Collect the epsilon sweeps at the headline ratio (and sigma_s, where there is a choice).

    Returns:
        Rows for `paper_figures.curves.curve_figure`; ``x`` is the target epsilon. Floor and ceiling are references.
        The published curve stands beside ours where the paper has the dataset and public model.

    Raises:
        MissingStudy: no method has two values of epsilon on one dataset.
    """
    table = at_headline(results.summary, results, "ratio", "sigma_s")
    values = table.groupby([*GROUP, "method"], sort=False)["epsilon"].nunique()
    swept = list(dict.fromkeys(key[:2] for key in values.index[values > 1]))
    if not swept:
        raise MissingStudy("no method has runs at two values of epsilon")
    panels = [_panel(rows_of(table, *key), results, *key) for key in swept]
    data = pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)
    names = data.groupby("series", sort=False)["series"].transform(lambda rows: _name(data.loc[rows.index], results))
    return with_spent_note(data.assign(label=names), results)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    swept = table.groupby("method")["epsilon"].transform("nunique") > 1
    shown = swept | ~table["method"].isin(VARIANTS)  # variants at one epsilon have a figure of their own
    trained = with_labels(table[table["epsilon"].notna() & shown], results)
    kept = trained[["series", "label", "ratio", "sigma_s"]]
    rows = pd.concat([kept, scores(trained)], axis=1).assign(reference=False, x=trained["epsilon"])
    rows = pd.concat([rows, beside("epsilon_sweep", "epsilon", dataset, public_model, ratio=results.headline["ratio"])])
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    return pd.concat([rows, bounds], ignore_index=True).assign(panel=f"{dataset}, {public_model}")


def _name(rows: pd.DataFrame, results: Results) -> str:
    """Name a curve with its ratio, and with sigma_s where its points differ in it."""
    ratios, noises = (rows[axis].dropna().unique() for axis in ("ratio", "sigma_s"))
    ratios, noises = sorted(ratios), sorted(noises, key=lambda value: (value == "auto", value))
    if rows["series"].iloc[0] == "published":
        return PUBLISHED.label
    text = name_of(rows["series"].iloc[0], results)
    if ratios:
        text += " " + " or ".join(number(100 * ratio) for ratio in ratios) + " %"
    if len(noises) > 1:
        text += ", σ_s = " + " or ".join(map(written, noises))
    return text


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare` on a logarithmic axis with the epsilons that were run."""
    figure = curve_figure(data, LOOKS | {"published": PUBLISHED}, "target ε", data["protocol"].iloc[0])
    log_axis(figure, data["x"])
    figure.suptitle(spent_note_of(data) or None, fontsize="medium")
    return figure
