"""Every metric that the runs have, of every method: what accuracy and FID alone do not show."""

import pandas as pd

from dpsapf.experiment.columns import INTERVAL, MEAN, SEEDS
from dpsapf.experiment.runs import number
from paper_figures.results import GROUP, Results, at_headline, spent_note_of, with_labels, with_spent_note
from paper_figures.tables import MISSING, Cell, Table, amount, decimals, plain

NAMES = {  # for a reader, and what is better; a metric that is not named here has the name of its column
    "accuracy": "accuracy ↑",
    "macro_f1": "macro F1 ↑",
    "calibration_error": "calibration error ↓",
    "fid": "FID ↓",
    "fid_infinity": "FID∞ ↓",
    "kid": "KID ↓",
    "inception_score": "IS ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "fld": "FLD ↓",
}


def prepare(results: Results) -> pd.DataFrame:
    """Collect the mean and the 95 % half width of every metric that some run has, at the headline ratio and sigma_s.

    Returns:
        One row per dataset, public model, epsilon and method, with ``n`` seeds; 0 if all of its runs are missing. Metrics are
        in their own units, accuracy in [0, 1], in the order of `NAMES`, then as in summary.csv.
    """
    table = at_headline(pd.concat([results.summary, results.lost]), results, "ratio", "sigma_s")
    rows = with_labels(table, results)
    measured = [name.removesuffix(MEAN) for name in rows if name.endswith(MEAN) and rows[name].notna().any()]
    metrics = [name for name in NAMES if name in measured] + [name for name in measured if name not in NAMES]
    columns = [name + end for name in metrics for end in (MEAN, INTERVAL)]
    kept = rows[[*GROUP, "epsilon", "series", "label", SEEDS, *columns]]
    told = kept.assign(protocol=results.protocol, missing_note=results.missing_note)
    return with_spent_note(told, results).reset_index(drop=True)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    metrics = [name.removesuffix(MEAN) for name in data if name.endswith(MEAN)]
    places = {(key, name): decimals(rows[name + MEAN]) for key, rows in data.groupby("dataset") for name in metrics}
    rows = []
    for row in data.to_dict("records"):
        names = (*(row[key] for key in GROUP), row["label"], plain(row["epsilon"]), number(row[SEEDS]))
        rows.append((*map(Cell, names), *(Cell(_text(row, name, places[row["dataset"], name])) for name in metrics)))
    header = ("dataset", "public model", "method", "target ε", "seeds", *(NAMES.get(name, name) for name in metrics))
    notes = (
        f"Protocol {data['protocol'].iloc[0]}. ↑: more is better, ↓: less is better.",
        spent_note_of(data),
        data["missing_note"].iloc[0],
    )
    return Table(header, tuple(rows), names=3, note=" ".join(filter(None, notes)))


def _text(row: dict, metric: str, places: int) -> str:
    return amount(row[metric + MEAN], places, row[metric + INTERVAL]) if row[SEEDS] else MISSING
