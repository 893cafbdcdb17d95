"""What was measured against what a release claims: exact tests that a right stage fails once in ten million times.

Every test is two-sided where both sides mean a defect, and none relies on an approximation at its tail.
"""

from pathlib import Path

import numpy as np
from scipy import stats

from dpsapf.experiment.records import Measured, Spend
from dpsapf.support.errors import UserError

UNLIKELY = 1e-8  # chance at which a kind of test refuses, over all its steps together
ROUNDING = 1e-6  # by which a norm, computed in fp32, may seem to exceed its bound


def check_measures(spend: Spend, measured: Measured, path: Path) -> None:
    """Test the private measures of a release against its record.

    Raises:
        UserError: names the measure and what it contradicts.
    """
    _check_batches(spend, measured, path)
    _check_participation(spend, measured, path)
    _check_contribution(spend, measured, path)
    _check_measured(spend, measured, path)
    if spend.release.mechanism != "none":
        _check_noise(spend, measured, path)


def _refuse(path: Path, key: str, value: object, what: str) -> None:
    raise UserError(f"{path}: {key}", value, f"{what}; a defect of the code or a changed record: do not publish, report it")


def _check_batches(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that batch sizes are a Poisson sampler's: Binomial(N, q), each alone, their total, and their spread."""
    sizes, rate, steps = np.array(measured.batches), spend.release.sampling_rate, spend.release.steps
    if len(sizes) != steps:
        _refuse(path, "batches", len(sizes), f"must be the {steps} of the release's steps")
    if rate == 1:
        if (sizes != spend.population).any():
            _refuse(path, "batches", sizes.tolist()[:5], f"rate 1 takes all {spend.population} {spend.unit}s at every step")
        return
    total = two_sided(sizes.sum(keepdims=True), spend.population * steps, rate)
    chances = (steps * two_sided(sizes, spend.population, rate).min(), total[0], too_even(sizes, spend.population, rate))
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
    bound = spend.release.sensitivity
    if (
        spend.release.mechanism in ("gaussian", "none")
        and bound is not None
        and not measured.largest_contribution <= bound * (1 + ROUNDING)
    ):
        _refuse(path, "largest_contribution", measured.largest_contribution, f"exceeds the sensitivity {bound}")


def _check_measured(spend: Spend, measured: Measured, path: Path) -> None:
    """Refuse a release under a guarantee in which units took part, and none was seen to add anything."""
    if spend.release.mechanism == "gaussian" and sum(measured.batches) and not measured.largest_contribution > 0:
        _refuse(path, "largest_contribution", measured.largest_contribution, "what a unit adds was not measured")


def _check_noise(spend: Spend, measured: Measured, path: Path) -> None:
    """Test that there was noise for every number, as much as recorded, and new at every step."""
    expected = spend.numbers * spend.release.steps
    if spend.release.mechanism == "gaussian" and measured.numbers != expected:
        _refuse(path, "numbers", measured.numbers, f"must be {expected}: noise on each of {spend.numbers} numbers at every step")
    law = stats.chi2(measured.numbers)
    if not 2 * min(law.cdf(measured.squares), law.sf(measured.squares)) >= UNLIKELY:
        ratio = (measured.squares / max(measured.numbers, 1)) ** 0.5
        _refuse(path, "squares", measured.squares, f"the noise was {ratio:.3g} times what the release says")
    if not 2 * spend.release.steps * measured.repetition >= UNLIKELY:
        _refuse(path, "repetition", measured.repetition, "noise of one step is like another step's")
