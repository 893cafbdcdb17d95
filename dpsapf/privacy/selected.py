"""The selection of a run, derived once more from released scores, plan and public files, by code of its own."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import (
    BLOCK,
    CANDIDATES,
    FRAGILITY_SHRUNK,
    LAYER,
    LORA_PARAMETERS,
    MATRIX,
    NOISE_ENERGY,
    PARAMETERS,
    PREDICTED_RISE,
    RANK,
    RISE_DIGITS,
    SCORE,
    SELECTED,
    SIGNAL_ENERGY,
)
from dpsapf.experiment.methods import MEMBERS, TOLERATED_RISE, WEIGHS_NOISE, Candidates, method
from dpsapf.experiment.records import Plan, Release
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.optimization.noise_walk import level_ranks, noise_walk
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator

UNITS = {"matrix": MATRIX, "layer": LAYER, "block": BLOCK}
NEAR = 1e-6 + 0.5 * 10.0 ** (1 - RISE_DIGITS)  # relative, that machines and rounding may change a predicted rise by


def candidate_rows(path: Path, names: Candidates) -> pd.DataFrame:
    """Read the rows of a candidate table that are of a candidate set."""
    table = pd.read_csv(path, float_precision="round_trip")
    return table[[kind in MEMBERS[names] for kind in table[CANDIDATES]]].reset_index(drop=True)


def check_selection(
    path: Path, table: pd.DataFrame, scores: Sequence[float] | None, plan: Plan, options: AuditPrivacy
) -> pd.DataFrame:
    """Check that selection.csv is what plan, released scores and public files imply, byte by byte.

    Args:
        path: selection.csv.
        table: the candidates.
        scores: by which the run selects; None if it selects without.
        plan: of the run.
        options: of the audit: what noise breaks, and the settings of training.

    Returns:
        The rows that are trained.

    Raises:
        UserError: names the first line that is another.
    """
    found = path.read_bytes()
    due = _derived(table.assign(**{SCORE: scores}), plan, options, path)
    expected = due.to_csv(index=False).encode()
    if found != expected:
        _tell(path, found, expected)
    return due[due[SELECTED]]


def _tell(path: Path, found: bytes, expected: bytes) -> None:
    lines = [text.decode("utf-8", "replace").split("\n") for text in (found, expected)]
    place = next((row for row, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), min(map(len, lines)) - 1)
    here, there = (text[place][:200] for text in lines)
    told = f"must be {there!r}, which plan, scores and public files imply: select again; if it stays, do not publish, report it"
    raise UserError(f"{path}: line {place + 1}", here, told)


def _derived(table: pd.DataFrame, plan: Plan, options: AuditPrivacy, path: Path) -> pd.DataFrame:
    run = plan.run
    if run.rule in WEIGHS_NOISE:
        table = table.assign(**_weights(table, plan, options, path))
    units = table[UNITS[run.level or "matrix"]]
    table = table.assign(**{SELECTED: units.isin(_winners(table, units, plan))})
    if run.lora_rank == "auto":
        ranks = pd.Series(level_ranks(_rises(table[table[SELECTED]], plan, options), options.lora_rank))
        table.loc[table[SELECTED], RANK] = ranks.to_numpy()
        table[RANK] = table[RANK].fillna(0).astype(np.int64)
    return table


def _winners(table: pd.DataFrame, units: pd.Series, plan: Plan) -> Sequence[str]:
    """Return the units that are trained."""
    run, names = plan.run, units.unique()
    kind = method(run.method).selection
    count = len(names) if run.ratio is None else max(1, math.floor(run.ratio * len(names) + 0.5 + 1e-9))
    if kind == "all":
        return names
    if kind == "random" or run.rule == "random":
        return numpy_generator(run.seed, "random selection", run.dataset).choice(names, count, replace=False)
    if run.rule in WEIGHS_NOISE:
        return _worthwhile(table, units, count, plan)
    sums = table.groupby(units, sort=False)[SCORE].sum()
    order = sums.sort_values(ascending=run.rule == "least", kind="stable")
    if run.rule == "gap" and run.ratio is None and len(order) > 1:
        falls = -np.diff(order.to_numpy())
        count = 1 + int(falls.argmax())
    return order.index[:count]


def _worthwhile(table: pd.DataFrame, units: pd.Series, count: int, plan: Plan) -> Sequence[str]:
    """Return the units whose signal is worth what noise in them breaks: as many as the ratio says, or the rule finds."""
    budget = plan.run.rule == "noise-budget"
    costs = table[PREDICTED_RISE] if budget else table[FRAGILITY_SHRUNK] * (table[SIGNAL_ENERGY] + table[NOISE_ENERGY])
    summed = pd.DataFrame({"gain": table[SIGNAL_ENERGY], "cost": costs}).groupby(units, sort=False).sum()
    worth = np.divide(summed["gain"], summed["cost"]).where(summed["gain"] > 0, 0.0)
    ordered = summed.loc[worth.sort_values(ascending=False, kind="stable").index]
    if plan.run.ratio is None and budget:
        count = max(1, int((ordered["cost"].cumsum() <= TOLERATED_RISE).sum()))
    elif plan.run.ratio is None:
        gains = ordered["gain"].cumsum().to_numpy()
        count = 1 + int(np.argmax(gains**2 / ordered["cost"].cumsum().to_numpy())) if gains[-1] > 0 else 1
    return ordered.index[:count]


def _weights(table: pd.DataFrame, plan: Plan, options: AuditPrivacy, path: Path) -> dict[str, object]:
    """Return the columns that say what a matrix' signal is, and what noise in it does."""
    scored, trained = (_release(plan, name) for name in ("saliency", "dp-sgd"))
    bound, sigma = scored.sensitivity or 1.0, scored.noise_multiplier or 0.0
    excess = (table[SCORE].to_numpy(float) / bound) ** 2 - sigma**2
    signal = {SIGNAL_ENERGY: np.maximum(0.0, excess) / (scored.sampling_rate * plan.population) ** 2}
    if plan.run.rule == "noise-budget":
        return signal | {PREDICTED_RISE: _told_rises(table, plan, options, path)}
    numbers = plan.run.adapter_rank(options.lora_rank) * table[LORA_PARAMETERS] if plan.run.adapter else table[PARAMETERS]
    each = ((trained.noise_multiplier or 0.0) / (trained.sampling_rate * plan.population)) ** 2
    fragility = fragilities(options.fragility, table) if plan.run.rule == "noise-aware" else 1.0
    return signal | {NOISE_ENERGY: each * numbers.to_numpy(), FRAGILITY_SHRUNK: fragility}


def _release(plan: Plan, name: str) -> Release:
    return next(release for release in plan.releases if release.name == name)


def fragilities(path: Path | None, table: pd.DataFrame) -> np.ndarray:
    """Read what noise breaks in each candidate, float64 [M].

    Raises:
        UserError: no file is given, or it is of other candidates.
    """
    if path is None:
        raise UserError("--fragility", None, "the run selects by what noise breaks: give the file")
    found = pd.read_csv(path, float_precision="round_trip")
    if found[MATRIX].tolist() != table[MATRIX].tolist():
        raise UserError("--fragility", str(path), "holds other matrices than --candidate-table: use one public model")
    return found[FRAGILITY_SHRUNK].to_numpy()


def _rises(table: pd.DataFrame, plan: Plan, options: AuditPrivacy) -> np.ndarray:
    rate = plan.run.learning_rate if isinstance(plan.run.learning_rate, float) else options.learning_rate
    if rate is None:
        raise UserError("--learning-rate", None, "the run asks what noise breaks at a learning rate: give it")
    return noise_walk(options.fragility, table, plan, options).rises(rate)


def _told_rises(table: pd.DataFrame, plan: Plan, options: AuditPrivacy, path: Path) -> np.ndarray:
    """Read the rises that the selection was made by, if they are those that are found here, to the digits that machines share."""
    told = pd.read_csv(io.BytesIO(path.read_bytes()), float_precision="round_trip")
    found = told[PREDICTED_RISE].to_numpy() if PREDICTED_RISE in told and len(told) == len(table) else np.full(len(table), np.nan)
    due = _rises(table, plan, options)
    plain = [float(f"{value:.{RISE_DIGITS}g}") for value in found]
    wrong = ~(np.abs(found - due) <= NEAR * due) | (np.array(plain) != found)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{path}: {PREDICTED_RISE}", found[row], f"must be {due[row]:.{RISE_DIGITS}g}: select again")
    return found
