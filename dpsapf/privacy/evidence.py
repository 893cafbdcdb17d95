"""What was measured against what a release claims: exact tests that a right stage fails once in ten million times.

Every test is two-sided where both sides mean a defect, and none relies on an approximation at its tail.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from dpsapf.experiment.records import Measured, Release, Spend
from dpsapf.support.errors import UserError

KEPT = 4096  # places of a step, drawn once for a release, at which noise is looked at one by one
CELLS = 16  # intervals that a normal number falls into with equal chance
UNLIKELY = 1e-8  # chance at which a kind of test refuses, over all its steps together
ROUNDING = 1e-6  # by which a norm, computed in fp32, may seem to exceed its bound; relative
ADDITIVE = 0.1  # share by which units' sum may differ from the sum of each alone: bf16 differs by 0.01, a fault by 0.5


def check_measures(spend: Spend, measured: Measured, path: Path) -> None:
    """Test the private measures of a release against its record.

    Raises:
        UserError: names the measure and what it contradicts.
    """
    _check_batches(spend, measured, path)
    _check_participation(spend, measured, path)
    _check_contribution(spend, measured, path)
    _check_measured(spend, measured, path)
    _check_secret(spend, measured, path)
    if spend.release.mechanism != "none":
        _check_noise(spend, measured, path)


def _refuse(path: Path, key: str, value: object, what: str) -> None:
    raise UserError(f"{path}: {key}", value, f"{what}; a defect of the code or a changed record: do not publish, report it")


def _check_batches(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that batch sizes are a Poisson sampler's: Binomial(N, q), each alone, their total, how many are 0, their spread."""
    sizes, rate, steps = np.array(measured.batches), spend.release.sampling_rate, spend.release.steps
    if len(sizes) != steps:
        _refuse(path, "batches", len(sizes), f"must be the {steps} of the release's steps")
    if rate == 1:
        if (sizes != spend.population).any():
            _refuse(path, "batches", sizes.tolist()[:5], f"rate 1 takes all {spend.population} {spend.unit}s at every step")
        return
    total = two_sided(sizes.sum(keepdims=True), spend.population * steps, rate)
    empty = two_sided((sizes == 0).sum(keepdims=True), steps, stats.binom.pmf(0, spend.population, rate))
    each = steps * two_sided(sizes, spend.population, rate).min()
    chances = (each, total[0], empty[0], too_even(sizes, spend.population, rate))
    if not min(chances) >= UNLIKELY:
        what = f"are no Poisson samples of {spend.population} {spend.unit}s at rate {rate:.4g}"
        _refuse(path, "batches", sizes[:5].tolist(), what)


def two_sided(counts: np.ndarray, trials: int, rate: float | np.ndarray) -> np.ndarray:
    """Return twice the smaller exact binomial tail of each count [n] at its rate; 1 at the most."""
    return np.minimum(1, 2 * np.minimum(stats.binom.cdf(counts, trials, rate), stats.binom.sf(counts - 1, trials, rate)))


def too_even(sizes: np.ndarray, images: int, rate: float) -> float:
    """Bound the chance that all sizes lie so near the mean; small for batches of one fixed size.

    The sizes are independent, so the chance that all of T lie within the largest distance seen is the T-th power of the
    exact chance of one.
    """
    mean = images * rate
    widest = abs(sizes - mean).max()
    low, high = np.ceil(mean - widest - 1e-9), np.floor(mean + widest + 1e-9)
    one = stats.binom.cdf(high, images, rate) - stats.binom.cdf(low - 1, images, rate)
    return float(one ** len(sizes))


def _check_participation(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that images took part independently of one another and of the step.

    The number of images that took part in t of T steps is Binomial(N, p_t), with p_t the chance of Binomial(T, q) at t.
    A batch that is drawn once and used again has the right size at every step, and images that take part in all steps or
    in none.
    """
    counts, rate, steps = np.array(measured.participation), spend.release.sampling_rate, spend.release.steps
    took = counts @ np.arange(len(counts))
    if counts.sum() != spend.population or len(counts) > steps + 1 or took != sum(measured.batches):
        what = f"must count {spend.population} {spend.unit}s and agree with the batches"
        _refuse(path, "participation", counts.tolist()[:5], what)
    law = stats.binom.pmf(np.arange(steps + 1), steps, rate)
    seen = np.pad(counts, (0, steps + 1 - len(counts)))
    if not (steps + 1) * two_sided(seen, spend.population, law).min() >= UNLIKELY:
        _refuse(path, "participation", counts.tolist()[:5], f"{spend.unit}s do not take part independently at rate {rate:.4g}")


def _check_contribution(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that nobody but the batch was read, that each unit was bounded, and that units add up one by one."""
    bound = spend.release.sensitivity
    if measured.strangers:
        _refuse(path, "strangers", measured.strangers, f"so many images were read of {spend.unit}s that were not in the batch")
    if measured.surplus:
        _refuse(path, "surplus", measured.surplus, f"so many more {spend.unit}s were added up than the batch had")
    if (
        spend.release.mechanism in ("gaussian", "none")
        and bound is not None
        and not measured.largest_contribution <= bound * (1 + ROUNDING)
    ):
        _refuse(path, "largest_contribution", measured.largest_contribution, f"exceeds the sensitivity {bound}")
    if not measured.not_additive <= ADDITIVE:
        what = f"{spend.unit}s together add something else than the sum of what each adds alone"
        _refuse(path, "not_additive", measured.not_additive, what)


def _check_measured(spend: Spend, measured: Measured, path: Path) -> None:
    """Refuse a release under a guarantee in which units took part, and none was seen to add anything."""
    if spend.release.mechanism == "gaussian" and sum(measured.batches) and not measured.largest_contribution > 0:
        _refuse(path, "largest_contribution", measured.largest_contribution, "what a unit adds was not measured")


def _check_secret(spend: Spend, measured: Measured, path: Path) -> None:
    if spend.release.noise == "system" and measured.secret == "seed":
        what = "batches or pairs came from a seed, the noise did not: who knows the seed knows who took part"
        _refuse(path, "secret", measured.secret, what)


def _check_noise(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that there was noise for every number, as much as recorded, at every step and on every tensor, and normal."""
    numbers, steps = sum(measured.sizes), spend.release.steps
    if len(measured.squares) != steps or len(measured.parts) != len(measured.sizes):
        _refuse(path, "squares", len(measured.squares), f"must be one for each of {steps} steps, and parts one for each tensor")
    if spend.release.mechanism == "gaussian" and numbers != spend.numbers:
        _refuse(path, "sizes", numbers, f"must be {spend.numbers}: noise on each of {spend.numbers} numbers at every step")
    total = float(np.sum(measured.squares))
    ratio = (total / max(numbers * steps, 1)) ** 0.5
    half = _half_a_step(spend.release, numbers)
    for key, values, counts in (
        ("squares", [total], [numbers * steps]),
        ("squares", measured.squares, [numbers] * steps),
        ("parts", measured.parts, [size * steps for size in measured.sizes]),
    ):
        if not len(values) * two_sided_chi2(values, counts, half * np.sqrt(counts)).min() >= UNLIKELY:
            _refuse(path, key, min(values), f"the noise was {ratio:.3g} times what the release says, or not so in some part")
    if not np.isclose(total, np.sum(measured.parts), rtol=ROUNDING):
        _refuse(path, "parts", float(np.sum(measured.parts)), f"must add up to the steps' squares, {total}")
    _check_sums(measured, steps, half, path)
    _check_each(measured, steps, half, path)


def _half_a_step(release: Release, numbers: int) -> float:
    """Return half a step of the grid that noise is rounded to, in its standard deviations: so near to 0 it may be 0."""
    from dpsapf.privacy.noise import grid  # imports torch

    if release.mechanism != "gaussian":
        return 0.0
    return grid(release.sensitivity, max(1, numbers)) / (2 * release.noise_multiplier * release.sensitivity)


def _check_sums(measured: Measured, steps: int, half: float, path: Path) -> None:
    """Test that noise within a step is independent: then its sum over a tensor, and over all, is normal.

    Noise of which one half takes the other away has a sum of 0; noise that two tensors share has too large a one.
    """
    sizes = np.array([*measured.sizes, sum(measured.sizes)])
    if len(measured.sums) != len(sizes):
        _refuse(path, "sums", len(measured.sums), "must be one for each tensor, and one for all together")
    chances = two_sided_chi2(measured.sums, [steps] * len(sizes), half * np.sqrt(steps / sizes))
    if not len(sizes) * chances.min() >= UNLIKELY:
        what = "noise of some numbers takes away, or repeats, that of others of the same step"
        _refuse(path, "sums", measured.sums[int(chances.argmin())], what)


def _check_each(measured: Measured, steps: int, half: float, path: Path) -> None:
    """Test the noise at the places that were looked at one by one: normal, and independent from step to step."""
    if measured.looked_at < min(KEPT, sum(measured.sizes)) or sum(measured.cells) != measured.looked_at * steps:
        _refuse(path, "looked_at", measured.looked_at, f"must be {KEPT} places or all, at each step")
    cells = np.array(measured.cells)
    if not len(cells) * two_sided(cells, cells.sum(), 1 / CELLS).min() >= UNLIKELY:
        _refuse(path, "cells", cells.tolist()[:5], "the noise does not have the law that the release says")
    rounding = half * np.sqrt(measured.looked_at / steps)
    if not two_sided_chi2([measured.sum_squares], [measured.looked_at], rounding).min() >= UNLIKELY:
        _refuse(path, "sum_squares", measured.sum_squares, "noise of some steps takes away, or adds to, that of others")
    if not steps * (steps + 1) / 2 * measured.repetition >= UNLIKELY:
        _refuse(path, "repetition", measured.repetition, "noise of one step is like another step's")


def two_sided_chi2(values: Sequence[float], counts: Sequence[int], rounding: float | np.ndarray = 0.0) -> np.ndarray:
    """Return twice the smaller tail of each sum of squares [n] of so many normal numbers; 1 at the most.

    Args:
        values: sums of squares.
        counts: numbers in each.
        rounding: by how much rounding to a grid may have lowered the root of each.
    """
    law = stats.chi2(np.asarray(counts))
    return np.minimum(1, 2 * np.minimum(law.cdf((np.sqrt(values) + rounding) ** 2), law.sf(values)))
