"""What a claim compares, out of the tables of a results folder: the seeds of either side, at one setting."""

import itertools
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import BLOCK, MATRIX, SCORE, USED_RATE
from dpsapf.experiment.methods import TRAINING_AXES
from dpsapf.experiment.runs import Study
from paper_figures.claims import Claim, Metric
from paper_figures.learning_rates import AUTO
from paper_figures.published import KEYS, PROTOCOLS, TRANSFORMERS
from paper_figures.results import CHOICES, GROUP, TRAINING, Results
from paper_figures.selection_map import STAGES

ENERGIES = ("energy", "share", "norm")  # scores that grow with an image's gradient in the matrix
HELD = (*CHOICES, "sigma_s", *(axis for axis in TRAINING_AXES if axis != "learning_rate"))  # what both sides share
OWN, IGNORED = "the config's own", "ignored"
GIVEN, BEYOND = "given", "beyond"
STEP = 2.0  # a usual step of a grid of learning rates: what such a step turns is about the learning rate
ENOUGH = 3  # seeds: the interval of two is nine standard deviations wide to either side, that of three 2.5


@dataclass(frozen=True)
class Comparison:
    """Two settings, or a setting and a published value, in one metric.

    Attributes:
        folder: name of the results folder.
        protocol: of its evaluation.
        setting: dataset, public model and what else tells it from other comparisons of its claim.
        held: what both sides share beside, where it is not the paper's: axis to value.
        ours: a value a seed, in the metric's unit; logs where the metric is one of logs. Float [n].
        theirs: likewise, float [m]; or the published value, float [1].
        rates: how many learning rates a seed's value is the mean of.
        published: True if theirs is a published value.
    """

    folder: str
    protocol: str
    setting: Mapping[str, typing.Any]
    held: Mapping[str, object]
    ours: np.ndarray
    theirs: np.ndarray
    rates: int = 1
    published: bool = False

    @property
    def seeds(self) -> int:
        """Seeds of the side that has fewer."""
        return len(self.ours) if self.published else min(len(self.ours), len(self.theirs))

    @property
    def entry(self) -> tuple:
        """What it is compared about: of several comparisons with one entry, one is judged."""
        told = {key: value for key, value in self.setting.items() if not pd.isna(value)}
        return tuple(sorted(told.items()))

    @property
    def rank(self) -> tuple:
        """How much it is worth, the least first: enough seeds, the paper's protocol, the paper's setting, more runs."""
        return self.seeds < ENOUGH, self.protocol not in PROTOCOLS, len(self.held), -self.seeds, -self.rates


def of_claim(claim: Claim, metric: Metric, results: Results) -> list[Comparison]:
    """Find everything that a results folder compares about a claim; of what has one entry, `one_each` chooses.

    Seeds are the units: the learning rates of a kind are averaged within each.
    """
    table = places(results) if claim.table == "places" else described(results.runs)
    if "kind" in claim.apart:
        table = table[table["kind"] != BEYOND]
    ours, theirs = (matching(table, side).dropna(subset=metric.column) for side in (claim.ours, claim.theirs))
    compared = {axis for axis in claim.ours if axis in claim.theirs and claim.ours[axis] != claim.theirs[axis]}
    axes = [axis for axis in HELD if axis in table and axis not in compared]
    apart = [*GROUP, *claim.apart, *claim.varied]
    found = []
    for key, rows in ours.groupby(apart, dropna=False, sort=False):
        setting = dict(zip(apart, key, strict=True))
        partners = matching(theirs, {name: setting[name] for name in (*GROUP, *claim.same)})
        for held, one, other in _alike(rows, partners, axes):
            sides = _by_seed(one, other, metric, together="kind" in claim.same)
            if all(map(len, sides)):
                means = [side.mean(axis="columns").to_numpy(float) for side in sides]
                found.append(Comparison(results.layout.root.name, results.protocol, setting, held, *means, sides[0].shape[1]))
    return found


def _alike(ours: pd.DataFrame, theirs: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[dict, pd.DataFrame, pd.DataFrame]]:
    """Yield what both sides hold that is not the paper's, and the rows that hold it: alike in everything that is not compared."""
    for (one, rows), (other, partners) in itertools.product(_settings(ours, axes), _settings(theirs, axes)):
        if all(a == b or IGNORED in (a, b) for a, b in zip(one, other, strict=True)):
            values = (b if a == IGNORED else a for a, b in zip(one, other, strict=True))
            held = {axis: value for axis, value in zip(axes, values, strict=True) if value not in (OWN, IGNORED, _papers(axis))}
            yield held, rows, partners


def _papers(axis: str) -> object:
    return Study.model_fields[axis].default[0]


def _settings(side: pd.DataFrame, axes: Sequence[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Split a side by its axes: `OWN` is the config's value, `IGNORED` what the method ignores."""
    if side.empty:
        return []
    trains = side["method"].isin(TRAINING) if "method" in side else False
    unset = {axis: np.where(trains & (axis in TRAINING_AXES), OWN, IGNORED) for axis in axes}
    filled = [side[axis].astype(object).where(side[axis].notna(), unset[axis]) for axis in axes]
    return list(side.groupby(filled, sort=False))


def _by_seed(ours: pd.DataFrame, theirs: pd.DataFrame, metric: Metric, together: bool) -> list[pd.DataFrame]:
    """Lay both sides out; ``together``: at the learning rates that both have, and of the seeds that have all of those."""
    sides = [_by_rate(rows, metric) for rows in (ours, theirs)]
    if together:
        shared = sides[0].columns.intersection(sides[1].columns)
        sides = [side[shared].dropna() for side in sides]
    return sides


def _by_rate(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Lay a metric out, seeds down and learning rates across, by their names in the config."""
    values = np.log(rows[metric.column]) if metric.log else rows[metric.column]
    rates = rows["learning_rate"].fillna(OWN) if "learning_rate" in rows else pd.Series(OWN, rows.index)
    return values.groupby([rows["seed"], rates]).mean().unstack()


def of_number(row: Mapping[str, typing.Any], metric: Metric, results: Results) -> list[Comparison]:
    """Set our runs of a published row's dataset, model and setting beside its value, if they are under the paper's protocol."""
    if results.protocol not in PROTOCOLS:
        return []
    runs = described(results.runs).dropna(subset=metric.column)
    runs = runs[runs["learning_rate"].isna()]
    runs = matching(runs, {key: None if pd.isna(row[key]) else row[key] for key in KEYS})
    published = np.array([math.log(row[metric.column]) if metric.log else row[metric.column]])
    told, setting = (results.layout.root.name, results.protocol), {key: row[key] for key in KEYS}
    return [
        Comparison(*told, setting, held, _by_rate(some, metric)[OWN].to_numpy(float), published, published=True)
        for held, some, _ in _alike(runs, runs, [axis for axis in HELD if axis not in KEYS])
    ]


def described(runs: pd.DataFrame) -> pd.DataFrame:
    """Add what claims ask for: accuracy in %, the kind of network, and the learning rate's number and kind.

    Kinds: ``auto``, what noise allows; ``given``, the config's own and others within a factor of `STEP` of it; and ``beyond``.
    Where nothing was trained at the config's own, the least takes its place. What does not train has neither number nor kind.
    """
    networks = [network(model) for model in runs["public_model"]]
    labels = runs["learning_rate"]
    auto, own, trains = labels == AUTO, labels.isna(), runs["method"].isin(TRAINING)
    used = runs[USED_RATE] if USED_RATE in runs else pd.Series(math.nan, runs.index)
    rates = pd.to_numeric(labels, errors="coerce").where(~own, used).where(trains & ~auto)
    centre = rates.where(own).groupby(runs["method"]).transform("median")
    centre = centre.fillna(rates.groupby(runs["method"]).transform("min"))
    near = np.abs(np.log(rates / centre)) <= math.log(STEP) + 1e-9  # a step of just two is within
    kinds = pd.Series(np.select([~trains, auto, own | near], [None, AUTO, GIVEN], BEYOND), runs.index)
    return runs.assign(accuracy_pct=100 * runs["accuracy"], network=networks, kind=kinds, rate=rates).reset_index(drop=True)


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


def one_each(found: Sequence[Comparison]) -> list[Comparison]:
    """Choose one comparison for each entry, by `Comparison.rank`; a tie goes to the folder that stands first.

    Folders are not averaged: their runs share seeds, and what a seed draws, such as a random subset, would count twice.
    """
    chosen: dict[tuple, Comparison] = {}
    for one in found:
        if one.entry not in chosen or one.rank < chosen[one.entry].rank:
            chosen[one.entry] = one
    return list(chosen.values())
