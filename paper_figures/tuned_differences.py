"""DP-SAPF minus every other way, at learning rates of their own and at the one that the config gives to all."""

import pandas as pd

from dpsapf.experiment.runs import number
from paper_figures.differences import OURS, cell, differences, note
from paper_figures.learning_rates import PANEL, name_of_way
from paper_figures.main_table import METRICS
from paper_figures.results import MissingStudy, Results
from paper_figures.tables import Cell, Table, decimals, plain
from paper_figures.tuned_and_shared import OWN, SHARED, own_and_shared, tuned_runs

NAMES = {OWN: "each its own", SHARED: "shared"}


def prepare(results: Results) -> pd.DataFrame:
    """Compare the most salient matrices with every other way, in both settings of `tuned_and_shared`.

    Returns:
        One row per dataset, public model, epsilon, ``setting`` (``own`` or ``shared``) and way: what
        `paper_figures.differences.differences` returns, and ``rate`` and ``chosen_by`` of the other way.

    Raises:
        MissingStudy: no way and the most salient matrices have two seeds each in one of the settings.
    """
    runs = tuned_runs(results)
    keys = [*PANEL, "way", "rate", "shared", "auto"]
    runs = runs.merge(own_and_shared(runs)[[*keys, "setting", "chosen_by"]], on=keys)
    runs = runs.assign(series=runs["way"], label=[name_of_way(*key) for key in zip(runs["way"], runs["ratio"], strict=True)])
    ours = runs["way"] == OURS
    table = differences(runs[ours], runs[~ours], [*PANEL, "setting"])
    if table.empty:
        raise MissingStudy(
            "no way and the most salient matrices have two seeds each at learning rates of their own, or at the config's"
        )
    rates = runs.groupby([*PANEL, "setting", "way"])[["rate", "chosen_by"]].first().reset_index()
    table = table.merge(rates.rename(columns={"way": "series"}), on=[*PANEL, "setting", "series"])
    return table.assign(ours=runs.loc[ours, "label"].iloc[0], protocol=results.protocol)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    places = {name: decimals(data[name]) for name in METRICS}
    rows = [
        (*map(Cell, _names(row)), *(cell(row, metric, places[metric]) for metric in METRICS)) for row in data.to_dict("records")
    ]
    header = ("dataset", "public model", "target ε", "learning rates", "minus", "its rate", "seeds", "accuracy (points)", "FID")
    return Table(header, tuple(rows), names=5, note=note(data))


def _names(row: dict) -> tuple[str, ...]:
    rate = number(float(f"{row['rate']:.2g}"))
    return row["dataset"], row["public_model"], plain(row["epsilon"]), NAMES[row["setting"]], row["label"], rate, str(row["n"])
