"""What gradients of a public model's own samples foretell of a saliency release: it costs nothing.

A bound on an image's gradient (``clipping_norm: auto``), and how much of a selection noise will leave.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import MATRIX, SCORE
from dpsapf.experiment.records import Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.saliency.scores import Bounds, score
from dpsapf.saliency.select import chosen
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import numpy_generator

NEAR = "near chance"
DRAWS = 100  # of the noise: a mean overlap is then told to about a hundredth


def read_gradients(path: Path | None, table: pd.DataFrame) -> np.ndarray:
    """Read squared gradient norms of own samples, float64 [n, M].

    Args:
        path: gradients.csv.
        table: the M candidates.

    Raises:
        UserError: it is not given, or is of other candidates.
    """
    if path is None:
        raise UserError("--gradients", None, "clipping_norm auto is found by it: run measure-gradients first")
    found = pd.read_csv(path, index_col=MATRIX)
    if found.index.tolist() != table[MATRIX].tolist():
        raise UserError("--gradients", str(path), "holds other matrices than --candidate-table: use one public model")
    return found.to_numpy(float).T


def median_norm(squared: np.ndarray) -> float:
    """Return the median gradient norm of samples over all candidates, from squared norms [n, M], to two digits."""
    return float(f"{np.median(np.sqrt(squared.sum(1))):.2g}")


def kept_of_selection(
    squared: np.ndarray, table: pd.DataFrame, run: RunSpec, release: Release, population: int, bounds: Bounds
) -> tuple[float, float] | None:
    """Foretell what share of a run's noiseless selection its noisy scores will choose, if private images were like samples.

    Args:
        squared: squared gradient norms of own samples [n, M].
        table: the M candidates.
        run: says how scores choose.
        release: of the scores.
        population: N.
        bounds: what limits an image's contribution.

    Returns:
        The mean over draws of the noise, and what chance would give; None where scores are no noisy sums over images, or do not
        choose, or choose all.
    """
    import torch  # it waits for the stages that need it

    contributions = score(run.score).contributions
    if contributions is None or release.mechanism != "gaussian" or run.rule == "random":
        return None
    exact = population * release.sampling_rate * contributions(torch.from_numpy(squared), bounds).mean(0).numpy()
    first = chosen(table.assign(**{SCORE: exact}), run)
    noise = numpy_generator(0, "kept of selection").standard_normal((DRAWS, len(table)))
    noisy = exact + release.noise_multiplier * release.sensitivity * noise
    shares = [(first & chosen(table.assign(**{SCORE: scores}), run)).sum() / first.sum() for scores in noisy]
    return None if first.all() else (float(np.mean(shares)), float(first.mean()))


def told(kept: tuple[float, float], run: RunSpec, release: Release, population: int, bound: float) -> str:
    """Say in one line what `kept_of_selection` foretells, and what helps where it is not half way from chance to all."""
    share, chance = kept
    line = f"noise is expected to keep {share:.0%} of the selection, by the public model's own samples; chance is {chance:.0%}"
    line += f" (score {run.score}, N = {population}, C_s = {bound:g}, sigma_s = {release.noise_multiplier:g})"
    near = share - chance < (1 - chance) / 2
    return f"{line}: {NEAR}; try saliency.clipping_norm auto, score share, or a smaller sigma_s" if near else line
