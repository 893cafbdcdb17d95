"""What each way of choosing matrices loses against the best in hindsight, over learning rates; and where it breaks."""

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import SEEDS, USED_RATE
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.runs import number
from paper_figures.collapse import edge, excess
from paper_figures.learning_rates import AUTO, CHOSEN, PANEL, RULES, WHOLE
from paper_figures.results import CHOICES, GROUP, MissingStudy, Results, hold
from paper_figures.tables import Cell, Table, amount, plain

SETTING = ["method", "rule", "score", "ratio"]
RATES = 3  # that a panel needs: a regret over one learning rate is a difference
NOTE = (
    "FID over best: geometric mean, over the learning rates {rates}, of a setting's FID over that of the best one at the "
    "same rate; accuracy below best likewise, a mean. Best is what was best in hindsight, so that luck counts: nobody reaches 1. "
    "Worst: the largest of those factors. Stable up to: the edge of collapse. Matrices: how many are trained, averaged."
)


def prepare(results: Results) -> pd.DataFrame:
    """Compare, at every learning rate, each way of choosing matrices with the best one there.

    Returns:
        One row per dataset, public model, epsilon and setting (method, rule, score, ratio) that was trained at all learning
        rates of its panel (the most that a setting has): ``label``, ``matrices`` (mean), the least number of ``seeds``,
        ``rates`` (a list in words), ``fid_over_best``, ``worst`` (the largest factor), ``accuracy_below_best`` (points),
        ``edge`` and ``edge_sign`` (see `paper_figures.collapse`).

    Raises:
        MissingStudy: no two ways of choosing share three learning rates beside a floor.
    """
    floor = results.runs[results.runs["method"] == "no-finetune"]
    runs = _compared(results).merge(floor[GROUP].drop_duplicates(), on=GROUP)
    floors = {key: rows["fid"].to_list() for key, rows in floor.groupby(GROUP)}
    panels = [(key, _panel(rows, floors[key[:2]])) for key, rows in runs.groupby(PANEL, sort=False)]
    panels = [panel.assign(**dict(zip(PANEL, key, strict=True))) for key, panel in panels if len(panel) > 1]
    if not panels:
        raise MissingStudy(f"no two ways of choosing were trained at {RATES} learning rates beside the public model as it is")
    return pd.concat(panels, ignore_index=True).assign(protocol=results.protocol)


def _compared(results: Results) -> pd.DataFrame:
    """Return runs that train chosen matrices, or all, at fixed learning rates; other axes are held as in other figures."""
    runs = results.runs[results.runs["epsilon"].notna() & (results.runs["learning_rate"] != AUTO)]
    runs = runs[runs["level"].isin(["matrix"]) | (runs["method"] == WHOLE)]
    choices = [axis for axis in CHOICES if axis not in ("rule", "score")]
    runs = hold(runs, results, choices, [axis for axis in TRAINING_AXES if axis != "learning_rate"])
    runs = runs[runs["sigma_s"].isna() | (runs["sigma_s"] == results.headline["sigma_s"])]
    return runs.assign(rate=runs[USED_RATE], log_fid=np.log(runs["fid"]), points=100 * runs["accuracy"])


def _panel(runs: pd.DataFrame, floor: list[float]) -> pd.DataFrame:
    groups = runs.groupby([*SETTING, "rate"], dropna=False, sort=False)
    means = groups[["log_fid", "points", "selected_matrices"]].mean().assign(**{SEEDS: groups.size()})
    means["excess"] = groups["fid"].apply(lambda fids: excess(fids.to_list(), floor))
    means = means.reset_index()
    rates = means.groupby(SETTING, dropna=False)["rate"].agg(frozenset)
    widest = max(rates.value_counts().items(), key=lambda entry: (len(entry[0]), entry[1]))[0]
    if len(widest) < RATES:
        return means.head(0)
    means = means[means.groupby(SETTING, dropna=False)["rate"].transform(lambda own: frozenset(own) == widest)]
    best = means.groupby("rate")[["log_fid", "points"]].agg({"log_fid": "min", "points": "max"}).loc[means["rate"]]
    over, below = means["log_fid"] - best["log_fid"].to_numpy(), best["points"].to_numpy() - means["points"]
    groups = means.assign(over=over, below=below).groupby(SETTING, dropna=False, sort=False)
    rows = [dict(zip(SETTING, key, strict=True)) | _numbers(rows) for key, rows in groups]
    table = pd.DataFrame(rows)
    return table.assign(label=[_label(row) for row in table.to_dict("records")]).sort_values("fid_over_best")


def _numbers(rows: pd.DataFrame) -> dict[str, object]:
    found = edge(rows["rate"], rows["excess"])
    return {
        "matrices": rows["selected_matrices"].mean(),
        "seeds": rows[SEEDS].min(),
        "rates": ", ".join(number(rate) for rate in sorted(rows["rate"])),
        "fid_over_best": np.exp(rows["over"].mean()),
        "worst": np.exp(rows["over"].max()),
        "accuracy_below_best": rows["below"].mean(),
        "edge": found.value,
        "edge_sign": found.sign,
    }


def _label(row: dict) -> str:
    if row["method"] == WHOLE:
        return "all (DP-LoRA)"
    name = CHOSEN["random-matrix"] if row["method"] == "random" else RULES.get(row["rule"], row["method"])
    score = "" if pd.isna(row["score"]) else f", {row['score']}"
    return name + score + (", auto" if pd.isna(row["ratio"]) else f", {number(round(100 * row['ratio'], 6))} %")


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out, the least regret first."""
    measured = ("matrices", "seeds", "FID over best", "worst", "accuracy below best", "stable up to")
    header = ("dataset", "public model", "target ε", "chosen", *measured)
    rows = [tuple(map(Cell, _texts(row))) for row in data.to_dict("records")]
    return Table(header, tuple(rows), names=4, note=NOTE.format(rates="; ".join(data["rates"].unique())))


def _texts(row: dict) -> tuple[str, ...]:
    names = row["dataset"], row["public_model"], plain(row["epsilon"]), row["label"]
    factors = amount(row["fid_over_best"], 2), amount(row["worst"], 1), amount(row["accuracy_below_best"], 1)
    return *names, amount(row["matrices"]), str(row["seeds"]), *factors, f"{row['edge_sign']} {row['edge']:.2g}".strip()
