"""Whether DP-SAPF carries over: to a diffusion transformer, and to other mechanisms of selection; beside the published values."""

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.runs import number
from paper_figures.dots import dot_figure
from paper_figures.published import TRANSFORMERS, published
from paper_figures.results import (
    CHOICES,
    GROUP,
    TRAINING_AXES,
    MissingStudy,
    Results,
    at_headline,
    hold,
    rows_of,
    scores,
    with_labels,
)
from paper_figures.style import LOOKS, PALETTE, Look, look_of

MECHANISMS = {
    "gaussian": Look("Gaussian noise on scores", PALETTE[0], "o"),
    "exponential": Look("exponential mechanism", PALETTE[2], "^"),
    "ptr": Look("propose-test-release", PALETTE[3], "s"),
}
LOOKS_OF_BOTH = LOOKS | MECHANISMS


def prepare(results: Results) -> pd.DataFrame:
    """Collect what was run of both studies at the headline ratio, sigma_s and epsilon, and the published values.

    Returns:
        Rows for `paper_figures.dots.dot_figure`; ``source`` is the evaluation protocol, or ``published``.

    Raises:
        MissingStudy: no transformer was fine-tuned, and no dataset has two mechanisms.
    """
    panels = [*_transformers(results), *_mechanisms(results)]
    if not panels:
        raise MissingStudy("no run of a diffusion transformer, or of two mechanisms on one dataset")
    ours = pd.concat(panels).assign(source=results.protocol)
    return pd.concat([ours, _published()], ignore_index=True).assign(reference=False)


def _transformers(results: Results) -> list[pd.DataFrame]:
    table = at_headline(results.summary, results, "ratio", "sigma_s", "epsilon")
    table = table[table["public_model"].isin(TRANSFORMERS)]
    keys = table[GROUP].drop_duplicates().itertuples(index=False)
    return [_panel(with_labels(rows_of(table, *key), results), key, results) for key in keys]


def _mechanisms(results: Results) -> list[pd.DataFrame]:
    table = hold(results.summary, results, [axis for axis in CHOICES if axis != "mechanism"], TRAINING_AXES)
    table = table[(table["method"] == "dp-sapf") & (table["level"] == "matrix")]
    for axis in ("ratio", "sigma_s", "epsilon"):
        table = table[table[axis] == results.headline[axis]]
    counts = table.groupby(GROUP, sort=False)["mechanism"].nunique()
    rows = table.assign(series=table["mechanism"]).sort_values("series", key=lambda names: names.map(list(MECHANISMS).index))
    return [_panel(rows_of(rows, *key), key, results) for key in counts.index[counts > 1]]


def _panel(rows: pd.DataFrame, key: tuple[str, str], results: Results) -> pd.DataFrame:
    labels = [LOOKS_OF_BOTH[name].label for name in rows["series"]]
    title = f"{key[0]}, {key[1]}, ε = {number(results.headline['epsilon'])}"
    return pd.concat([rows[["series"]], scores(rows)], axis=1).assign(panel=title, label=labels)


def _published() -> pd.DataFrame:
    table = published("transfer")
    transformer = table["public_model"].isin(TRANSFORMERS)
    names = [row["method"] if pd.isna(row["level"]) else f"{row['method']}-{row['level']}" for row in table.to_dict("records")]
    series = pd.Series(names).where(transformer, table["mechanism"])
    panels = "Published: " + table["dataset"] + ", " + table["public_model"] + ", ε = " + table["epsilon"].map(number)
    labels = [MECHANISMS[name].label if name in MECHANISMS else look_of(name).label for name in series]
    rows = table[["accuracy_pct", "fid"]].assign(series=series, label=labels, panel=panels, source="published")
    order = [*LOOKS, *MECHANISMS]
    return rows.sort_values("series", key=lambda names: names.map(order.index)).sort_values("panel", kind="stable")


def draw(data: pd.DataFrame) -> Figure:
    """Draw the rows of `prepare`."""
    return dot_figure(data, LOOKS_OF_BOTH)
