"""The main table: accuracy and FID per dataset and method, between the public model as it is and real images."""

import pandas as pd

from dpsapf.experiment.columns import INTERVAL, SEEDS
from paper_figures.results import (
    CEILING,
    GROUP,
    Results,
    at_headline,
    floor_and_ceiling,
    scores,
    spent_note_of,
    with_labels,
    with_spent_note,
)
from paper_figures.tables import MISSING, NOTHING, Cell, Table, amount, decimals, plain

BEST = "Bold: the best method under differential privacy, per dataset, public model and ε; the floor may be better."
UNRANKED = "Methods of other groups are not ranked."
METRICS = {"accuracy_pct": ("accuracy (%)", "max"), "fid": ("FID", "min")}


def prepare(results: Results) -> pd.DataFrame:
    """Collect every method at the headline ratio, all epsilons, with floor, ceiling and what trains without DP above them.

    Returns:
        One row per dataset, public model, epsilon and method: mean and 95 % half width of accuracy (%) and
        FID, trainable parameters (mean over seeds), and whether it is the best method under DP. A setting without a
        complete run has 0 seeds and no values.
    """
    table = at_headline(pd.concat([results.summary, results.lost]), results, "ratio", "sigma_s")
    trained = with_labels(table[(table["method"] != "no-finetune") | (table[SEEDS] == 0)], results)
    trained = trained.sort_values("epsilon", kind="stable", na_position="first")
    keys = [*GROUP, "epsilon", "method", "proxy", "level", "ratio", "sigma_s"]
    rows = pd.concat([trained[[*keys, "series", "label"]], scores(trained)], axis=1)
    size = results.runs.groupby(keys, dropna=False)["trainable_parameters"].mean().reset_index()
    rows = rows.merge(size, on=keys, how="left")
    # whether other groups' methods are private is not known here, and the ceiling of selections is not
    unranked = (rows["method"] == "external") | rows["series"].str.startswith(CEILING)
    for metric, (_, best) in METRICS.items():
        ranked = rows[metric].where(~unranked)
        rows["best_" + metric] = ranked == rows.assign(ranked=ranked).groupby([*GROUP, "epsilon"])["ranked"].transform(best)
    bounds = [
        floor_and_ceiling(results, *key).assign(dataset=key[0], public_model=key[1])
        for key in results.summary[GROUP].drop_duplicates().itertuples(index=False)
    ]
    models = list(results.runs["public_model"].unique())
    rows = pd.concat([*bounds, rows]).sort_values("public_model", key=lambda names: names.map(models.index), kind="stable")
    notes = {name: getattr(results, name) for name in ("release_note", "claim_note", "missing_note")}
    return with_spent_note(rows.assign(protocol=results.protocol, **notes), results).reset_index(drop=True)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out: methods down, datasets across, the best method under DP in bold."""
    datasets = list(data["dataset"].unique())
    columns = [(dataset, metric) for dataset in datasets for metric in METRICS]
    places = {column: decimals(data.loc[data["dataset"] == column[0], column[1]]) for column in columns}
    rows = []
    for key, group in data.groupby(["public_model", "epsilon", "label"], dropna=False, sort=False):
        by_dataset = {row["dataset"]: row for row in group.to_dict("records")}
        cells = [_cell(by_dataset.get(dataset), metric, places[dataset, metric]) for dataset, metric in columns]
        rows.append((*_names(key, group), *cells))
    header = [f"{dataset} {METRICS[metric][0]}" for dataset, metric in columns]
    names = ("public model", "method", "target ε", "seeds", "trainable parameters")
    release, claim, missing = (data[name].iloc[0] for name in ("release_note", "claim_note", "missing_note"))
    notes = (BEST, claim and UNRANKED, spent_note_of(data), release, claim, missing)
    return Table((*names, *header), tuple(rows), names=2, note=" ".join(filter(None, notes)))


def _names(key: tuple, group: pd.DataFrame) -> list[Cell]:
    public_model, epsilon, label = key
    seeds, parameters = span(group[SEEDS]), span(group["trainable_parameters"])
    return [Cell(text) for text in (public_model, label, _target(group, epsilon), seeds, parameters)]


def _target(group: pd.DataFrame, epsilon: float) -> str:
    if group["series"].str.startswith(CEILING).all():
        return f"∞, noise of {plain(epsilon)}"
    free = ["no-dp", "clip-only", *["external"] * int(pd.isna(epsilon))]
    return "∞" if group["method"].isin(free).all() else plain(epsilon)


def _cell(row: dict | None, metric: str, places: int) -> Cell:
    if row is None:
        return Cell(NOTHING)
    if row[SEEDS] == 0:
        return Cell(MISSING)
    return Cell(amount(row[metric], places, row[metric + INTERVAL]), bold=row["best_" + metric] is True)


def span(values: pd.Series) -> str:
    """Write one number if all are equal, else the least and the largest; a dash if there is none."""
    texts = [amount(value) for value in sorted(values.dropna().unique())]
    return "–".join(dict.fromkeys((texts[0], texts[-1]))) if texts else NOTHING
