"""What a claim compares, out of the tables of a results folder: one row per dataset, model and setting, paired by seed."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import BLOCK, MATRIX, SCORE
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.runs import Study
from paper_figures.claims import Claim, Metric
from paper_figures.learning_rates import AUTO
from paper_figures.published import KEYS, PROTOCOLS, TRANSFORMERS
from paper_figures.results import CHOICES, GROUP, TRAINING, Results
from paper_figures.selection_map import STAGES

ENERGIES = ("energy", "share", "norm")  # scores that grow with an image's gradient in the matrix
HELD = (*CHOICES, "sigma_s", *TRAINING_AXES)  # axes that both sides of a comparison share, unless it compares them
OWN, IGNORED, OF_THEIRS = "the config's own", "ignored", " of theirs"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two settings, or a setting and a published value, in one metric.

    Attributes:
        folder: name of the results folder.
        protocol: of its evaluation.
        setting: dataset, public model, epsilon and what else tells it from other comparisons of its claim.
        differences: ours minus theirs by seed, in the metric's unit; logs where the metric is one of logs.
        values: ours and theirs by seed, which tells runs that several folders have.
    """

    folder: str
    protocol: str
    setting: Mapping[str, object]
    differences: np.ndarray
    values: frozenset[tuple[float, float, float]]


def of_claim(claim: Claim, metric: Metric, results: Results) -> list[Comparison]:
    """Pair the rows of both sides of a claim by seed, at the settings that `alike` finds for this claim."""
    table = places(results) if claim.table == "places" else described(results.runs)
    ours, theirs = matching(table, claim.ours), matching(table, claim.theirs)
    if ours.empty or theirs.empty:
        return []
    keys = [*GROUP, *claim.same, "seed"]
    if claim.table == "runs":
        compared = set(claim.ours) & set(claim.theirs)
        ours, theirs = alike(ours, theirs, keys, [axis for axis in HELD if axis not in compared])
    other = theirs.groupby(keys, dropna=False)[metric.column].mean().rename("theirs").reset_index()
    pairs = ours.merge(other, on=keys).dropna(subset=[metric.column, "theirs"])
    by = [*GROUP, *(axis for axis in ("epsilon", "learning_rate") if axis in pairs), *claim.varied]
    return [
        _comparison(dict(zip(by, key, strict=True)), rows, metric, results)
        for key, rows in pairs.groupby(by, dropna=False, sort=False)
    ]


def _comparison(setting: dict, rows: pd.DataFrame, metric: Metric, results: Results) -> Comparison:
    rows = rows.groupby("seed")[[metric.column, "theirs"]].mean()
    ours, theirs = (rows[name].to_numpy(float) for name in (metric.column, "theirs"))
    differences = np.log(ours) - np.log(theirs) if metric.log else ours - theirs
    values = frozenset(zip(rows.index.astype(float), ours, theirs, strict=True))
    return Comparison(results.layout.root.name, results.protocol, setting, differences, values)


def of_number(row: Mapping[str, object], metric: Metric, results: Results) -> list[Comparison]:
    """Set our runs of a published row's dataset, model and setting beside its value, if they are under the paper's protocol."""
    if results.protocol not in PROTOCOLS:
        return []
    runs = described(results.runs)
    runs = matching(runs[runs["learning_rate"] != AUTO], {key: None if pd.isna(row[key]) else row[key] for key in KEYS})
    runs = runs.dropna(subset=metric.column)
    if runs.empty:
        return []
    runs, _ = alike(runs, runs, ["run_id"], [axis for axis in HELD if axis not in KEYS])
    setting = {key: row[key] for key in KEYS}
    return [_comparison(setting, runs.assign(theirs=row[metric.column]), metric, results)]


def described(runs: pd.DataFrame) -> pd.DataFrame:
    """Add what claims ask for: accuracy in %, and the kind of network."""
    networks = [network(model) for model in runs["public_model"]]
    return runs.assign(accuracy_pct=100 * runs["accuracy"], network=networks).reset_index(drop=True)


def alike(
    ours: pd.DataFrame, theirs: pd.DataFrame, keys: Sequence[str], axes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the rows of both sides that have one setting in everything that is not compared.

    Of all settings that both sides have, it is the one at the config's own learning rate, steps, batch size, rank and optimizer
    if there is one, and then the one that most pairs have. Runs at the learning rate that noise allows are chosen apart.

    Args:
        ours: rows of runs.csv of one side.
        theirs: of the other side.
        keys: columns that make a pair: both sides have the same value.
        axes: of `HELD`: what both sides share, unless a side's method ignores it.
    """
    pairs = _settings(ours, keys, axes).merge(_settings(theirs, keys, axes), on=keys, suffixes=("", OF_THEIRS))
    shared = pd.Series(True, pairs.index)
    for axis in map(_held, axes):
        value, partner = pairs[axis], pairs[axis + OF_THEIRS]
        shared &= (value == partner) | (value == IGNORED) | (partner == IGNORED)
        pairs[axis] = value.where(value != IGNORED, partner)
    pairs = pairs[shared]
    allowed = pairs[_held("learning_rate")] == AUTO
    kept = pd.concat([_at_best(pairs[some], axes) for some in (~allowed, allowed)])
    return ours.loc[kept["row"].unique()], theirs.loc[kept["row" + OF_THEIRS].unique()]


def _held(axis: str) -> str:
    return f"held {axis}"


def _settings(side: pd.DataFrame, keys: Sequence[str], axes: Sequence[str]) -> pd.DataFrame:
    """Return a side's keys, its row labels, and its axes: `OWN` for the config's value, `IGNORED` where the method ignores it."""
    unset = {axis: np.where(side["method"].isin(TRAINING) & (axis in TRAINING_AXES), OWN, IGNORED) for axis in axes}
    filled = {_held(axis): side[axis].astype(object).where(side[axis].notna(), unset[axis]) for axis in axes}
    return side[list(keys)].assign(row=side.index, **filled)


def _at_best(pairs: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Keep the pairs at the best setting of `alike`; a tie goes to the defaults of `Study`, then to the least."""
    if pairs.empty:
        return pairs
    names = list(map(_held, axes))
    counts = pairs.groupby(names).size()

    def rank(setting: tuple) -> tuple:
        defaults = sum(value == Study.model_fields[axis].default[0] for axis, value in zip(axes, setting, strict=True))
        return -setting.count(OWN), -counts[setting], -defaults, tuple(map(str, setting))

    return pairs[(pairs[names] == min(counts.index, key=rank)).all(axis="columns")]


def network(public_model: str) -> str:
    """Tell whether a public model is a ``unet`` or a ``transformer``."""
    return "transformer" if public_model in TRANSFORMERS else "unet"


def matching(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    """Keep the rows with the wanted values: of each column one, one of a tuple, or none (None)."""
    for column, value in wanted.items():
        options = value if isinstance(value, tuple) else (value,)
        some = table[column].isin([option for option in options if option is not None])
        table = table[some | table[column].isna()] if None in options else table[some]
    return table


def places(results: Results) -> pd.DataFrame:
    """Average each release's scores over the matrices of the outer blocks, and over those of the inner ones.

    Outer are the first and the last block of the network that have candidates. Only scores that grow with the gradient
    are taken (`ENERGIES`), of attention candidates, each release once however many runs share it.

    Returns:
        Two rows per release: dataset, public model, score, sigma_s, seed, ``place`` (``outer`` or ``inner``) and
        ``relative_score``, over the release's mean score.
    """
    table = results.selections
    table = table[table[SCORE].notna() & table["score"].isin(ENERGIES) & (table["candidates"] == "attention")]
    table = table[table["mechanism"] == "gaussian"]
    release = [*GROUP, "score", "sigma_s", "seed"]
    table = table.drop_duplicates([*release, MATRIX])
    found = [_outer_and_inner(rows).assign(**dict(zip(release, key, strict=True))) for key, rows in table.groupby(release)]
    return pd.concat(found) if found else pd.DataFrame(columns=[*release, "place", "relative_score"])


def _outer_and_inner(rows: pd.DataFrame) -> pd.DataFrame:
    blocks = sorted(rows[BLOCK].unique(), key=lambda block: STAGES.get(block.split(".")[0], 0))  # stable: listed order within
    outer = rows[BLOCK].isin([blocks[0], blocks[-1]])
    means = rows[SCORE].groupby(outer.map({True: "outer", False: "inner"})).mean() / rows[SCORE].mean()
    return means.rename("relative_score").rename_axis("place").reset_index()


def unique(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Leave out what says nothing more than another comparison.

    That is one whose runs are all among those of another one of the same setting, as folders share runs; and one of a single
    seed, which has no spread, where another one is of the same dataset and public model and has.
    """
    kept: list[Comparison] = []
    for one in sorted(comparisons, key=lambda comparison: -len(comparison.values)):
        same = [other for other in kept if _same(one.setting, other.setting)]
        tested = any(len(other.values) > 1 and all(other.setting[key] == one.setting[key] for key in GROUP) for other in kept)
        if not (any(one.values <= other.values for other in same) or (tested and len(one.values) == 1)):
            kept.append(one)
    return kept


def _same(one: Mapping[str, typing.Any], other: Mapping[str, typing.Any]) -> bool:
    def told(setting: Mapping[str, typing.Any]) -> dict[str, object]:
        return {key: value for key, value in setting.items() if not (isinstance(value, float) and math.isnan(value))}

    return told(one) == told(other)
