"""Runs at several learning rates: which way they chose what to train, and where the public model as it is stands."""

import dataclasses
import math

import pandas as pd

from dpsapf.experiment.columns import USED_RATE
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.runs import number
from paper_figures.results import CHOICES, GROUP, MissingStudy, Results, hold, with_labels
from paper_figures.style import LOOKS, Look

PANEL = [*GROUP, "epsilon"]
LEAST = "-least"  # ends the way of runs whose scores choose the least salient
BUDGET = "-noise-budget"  # ends the way of runs that train as many matrices as noise allows
RULES = {  # how scores choose
    "top": "most salient",
    "least": "least salient",
    "gap": "up to the largest gap",
    "noise-aware": "signal against noise",
    "equal-curvature": "signal against noise, equally fragile",
    "noise-budget": "as many as noise allows",
}
AUTO = "auto"  # learning rate that noise allows
WHOLE = "dp-lora"
NOISELESS = "clip-only"
CHOSEN = {  # ways of choosing as many matrices
    "dp-sapf-matrix": "most salient",
    "random-matrix": "random",
    f"dp-sapf-matrix{LEAST}": "least salient",
}


def runs_at_rates(results: Results) -> pd.DataFrame:
    """Return the runs that train under DP, and those that are clipped only as at an infinite epsilon.

    What is neither learning rate, way, ratio nor epsilon is held as in other figures.

    Returns:
        Rows of runs.csv with ``series`` (see `paper_figures.results.with_labels`), ``way`` (the series, and whether the
        least salient were chosen, or as many as noise allows), ``ratio`` (1 where all is trained; empty where noise allows
        as many) and ``rate`` (the peak learning rate that was used).
    """
    choices = [axis for axis in CHOICES if axis != "rule"]
    training = [axis for axis in TRAINING_AXES if axis != "learning_rate"]
    results = dataclasses.replace(results, runs=_noiseless_at_infinity(results.runs))
    runs = results.runs[results.runs["epsilon"].notna()]
    rules = runs["rule"]
    ranked = dataclasses.replace(results, runs=runs[rules.isna() | rules.isin(["top", "least"])])
    budget = runs[(rules == "noise-budget") & runs["ratio"].isna()]  # of score signal, whatever the others' is
    others = [axis for axis in choices if axis != "score"]
    runs = pd.concat([hold(ranked.runs, ranked, choices, training), hold(budget, ranked, others, training)])
    runs = runs[runs["sigma_s"].isna() | (runs["sigma_s"] == results.headline["sigma_s"])]
    runs = with_labels(runs, results)
    ways = runs["series"] + runs["rule"].map({"least": LEAST, "noise-budget": BUDGET}).fillna("")
    return runs.assign(way=ways, ratio=runs["ratio"].where(runs["level"].notna(), 1.0), rate=runs[USED_RATE])


def _noiseless_at_infinity(runs: pd.DataFrame) -> pd.DataFrame:
    """Let runs without noise stand for what they are but for the noise: all matrices, a random choice, or one by scores."""
    exact = runs["method"] == NOISELESS
    whole, drawn = exact & (runs["ratio"] == 1), exact & (runs["rule"] == "random")
    scored = runs[runs["method"] == "dp-sapf"]
    told = {axis: scored[axis].mode().get(0) for axis in ("score", "mechanism", "sigma_s")}
    runs = runs.assign(
        epsilon=runs["epsilon"].mask(exact, math.inf),
        method=runs["method"].mask(exact, "dp-sapf").mask(drawn, "random").mask(whole, WHOLE),
        **{axis: runs[axis].mask(exact, value) for axis, value in told.items()},
    )
    for axis in (*told, "rule"):
        runs[axis] = runs[axis].mask(whole | drawn)
    for axis in ("level", "ratio"):
        runs[axis] = runs[axis].mask(whole)
    return runs


def sweeps(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `stability_map` and `stability_edges` compare.

    Returns:
        Runs (as of `runs_at_rates`) of the ways of `CHOSEN` and of `WHOLE`, of every dataset, public model and epsilon
        that has one of the former at two learning rates; and the runs of the floor.

    Raises:
        MissingStudy: there is none, or none with a floor.
    """
    floor = results.runs[results.runs["method"] == "no-finetune"]
    runs = runs_at_rates(results).merge(floor[GROUP].drop_duplicates(), on=GROUP)
    runs = runs[runs["learning_rate"] != AUTO]
    rates = runs[runs["way"].isin(CHOSEN)].groupby([*PANEL, "way", "ratio"])["rate"].nunique()
    swept = rates[rates > 1].reset_index()[PANEL].drop_duplicates()
    if swept.empty:
        raise MissingStudy(
            "no selection was trained at two learning rates beside the public model as it is: config/stability.yaml"
        )
    return runs[runs["way"].isin([*CHOSEN, WHOLE])].merge(swept, on=PANEL), floor


def look_of_way(way: str) -> Look:
    """Return the look of a way."""
    if way.endswith(BUDGET):
        look = LOOKS[way.removesuffix(BUDGET)]
        return dataclasses.replace(look, label=f"{look.label}, {RULES['noise-budget']}", colour="purple", marker="s")
    if not way.endswith(LEAST):
        return LOOKS[way]
    look = LOOKS[way.removesuffix(LEAST)]
    return dataclasses.replace(look, label=f"{look.label}, least salient", colour="saddlebrown", marker="v")


def name_of_way(way: str, ratio: float) -> str:
    """Name a way for a reader, with its ratio if that is not 1."""
    if way.endswith(BUDGET):
        return RULES["noise-budget"]
    name = CHOSEN.get(way) or look_of_way(way).label
    return name if ratio == 1 else f"{name} {number(round(100 * ratio, 6))} %"


def title(panel: dict[str, object]) -> str:
    """Name a dataset, public model and epsilon."""
    return f"{panel['dataset']}, {panel['public_model']}, {target(panel)}"


def target(panel: dict[str, object]) -> str:
    """Name an epsilon; infinite without noise."""
    return f"ε = {number(panel['epsilon'])}" if math.isfinite(panel["epsilon"]) else "no noise"
