"""What privacy costs in utility: DP-SAPF at every epsilon, the same without noise and without clipping, floor and ceiling."""

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.dots import dot_figure
from paper_figures.results import GROUP, MissingStudy, Results, at_headline, floor_and_ceiling, rows_of, scores, with_labels
from paper_figures.style import look_of

WITHOUT = ("clip-only", "no-dp")
OURS = "dp-sapf"


def prepare(results: Results) -> pd.DataFrame:
    """Collect DP-SAPF by matrices at every epsilon, and what it would be without privacy, at the headline ratio and sigma_s.

    Returns:
        Rows for `paper_figures.dots.dot_figure`: from the least epsilon to none; floor and ceiling are references.

    Raises:
        MissingStudy: nothing was trained without noise.
    """
    table = at_headline(results.summary, results, "ratio", "sigma_s")
    table = table[(table["method"].isin([OURS, *WITHOUT])) & (table["level"] == "matrix")]
    compared = table[table["method"].isin(WITHOUT)][GROUP].drop_duplicates().itertuples(index=False)
    panels = [_panel(rows_of(table, *key), results, *key) for key in compared]
    if not panels:
        raise MissingStudy(f"no run of {' or '.join(WITHOUT)}")
    return pd.concat(panels, ignore_index=True)


def _panel(table: pd.DataFrame, results: Results, dataset: str, public_model: str) -> pd.DataFrame:
    rows = with_labels(table, results)
    names = [look_of(key).label for key in rows["series"]]
    budgets = ["" if pd.isna(value) else f", ε = {number(value)}" for value in rows["epsilon"]]
    labels = [name + budget for name, budget in zip(names, budgets, strict=True)]
    rows = pd.concat([rows[["series"]], scores(rows)], axis=1).assign(reference=False, label=labels)
    bounds = floor_and_ceiling(results, dataset, public_model).assign(reference=True)
    title = f"{dataset}, {public_model}, {number(100 * results.headline['ratio'])} % selected"
    return pd.concat([rows, bounds], ignore_index=True).assign(panel=title, source=results.protocol)


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`."""
    return dot_figure(data)
