"""The selection map in numbers: which blocks and which projections were selected, and where the released scores lie."""

import pandas as pd

from dpsapf.experiment.columns import BLOCK, MATRIX, PROJECTION, SCORE
from paper_figures import selection_map
from paper_figures.results import GROUP, Results
from paper_figures.style import LEVELS
from paper_figures.tables import Cell, Table, amount, plain

KEYS = [*GROUP, "level", "ratio"]


def prepare(results: Results) -> pd.DataFrame:
    """Sum `paper_figures.selection_map.prepare` up by block, and by projection within it.

    Returns:
        One row per dataset, public model, level, ratio and block, from the network's input to its output: ``matrices``
        (candidates in it), ``selected_pct`` (the share of them that was selected, mean over seeds), ``score_pct`` (its share
        of all released scores, noise included, so that it may be below 0) and ``selected_pct_of_<projection>``.

    Raises:
        MissingStudy: no run selects a given share.
    """
    data = selection_map.prepare(results)
    blocks = data.groupby([*KEYS, BLOCK], sort=False)
    table = blocks.agg(matrices=(MATRIX, "size"), selected_pct=("selected_share", "mean"), score=(SCORE, "sum")).reset_index()
    table["score_pct"] = 100 * table["score"] / table.groupby(KEYS)["score"].transform("sum")
    shares = data.pivot_table(index=[*KEYS, BLOCK], columns=PROJECTION, values="selected_share", sort=False)
    shares = 100 * shares[list(data[PROJECTION].unique())].add_prefix("selected_pct_of_")
    table = table.assign(selected_pct=100 * table["selected_pct"]).drop(columns="score")
    return table.merge(shares.reset_index(), on=[*KEYS, BLOCK])


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    shares = [name for name in data if name.startswith("selected_pct_of_")]
    header = ("dataset", "public model", "ranked", "share (%)", "block", "candidates", "selected (%)", "of all scores (%)")
    header += tuple(f"{name.removeprefix('selected_pct_of_')} selected (%)" for name in shares)
    rows = [
        (
            *map(Cell, (row["dataset"], row["public_model"], LEVELS[row["level"]], plain(100 * row["ratio"]), row[BLOCK])),
            Cell(amount(row["matrices"])),
            *(Cell(amount(row[name])) for name in ("selected_pct", "score_pct", *shares)),
        )
        for row in data.to_dict("records")
    ]
    return Table(header, tuple(rows), names=5)
