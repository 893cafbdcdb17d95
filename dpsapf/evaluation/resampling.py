"""Bootstrap intervals of scores over the synthetic images."""

from collections.abc import Callable, Iterator

import numpy as np

from dpsapf.evaluation.gaussians import CHUNK, Features, Moments, frechet, moments, root, trace_of_root
from dpsapf.support.progress import track
from dpsapf.support.randomness import numpy_generator


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, seed: int, draws: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval for what a statistic of ``count`` images is on average, by the bootstrap (Efron 1979).

    Quantiles of the statistic over images drawn with replacement, moved so that their mean is the statistic of all images.
    The plain percentiles would not do: images that are drawn twice add to a statistic that has a bias, such as FID or recall,
    the bias of few images once more. The bias that the statistic has at this number of images stays in it.

    Args:
        statistic: of the images at positions int64 [count], which may repeat.
        count: number of images.
        seed: of the draws.
        draws: number of draws, some hundreds.
        confidence: in (0, 1).

    Returns:
        Lower and upper end.
    """
    values = [statistic(positions) for positions in _drawn(count, seed, draws)]
    return _interval(statistic(np.arange(count)), values, confidence)


def frechet_interval(real: Moments, synthetic: Features, seed: int, draws: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return `bootstrap_interval` of FID over the synthetic images; the real ones are fixed.

    With R R^T the real covariance, the synthetic features x become x R once. The covariance of a draw of these is the product
    whose eigenvalues FID needs; if fewer images than features are drawn, the eigenvalues of the smaller matrix of their products
    are the same. An image that is drawn w times is one row with weight w.

    Args:
        real: of the real images.
        synthetic: fp32 [M, D].
        seed: of the draws; `bootstrap_interval` makes the same.
        draws: number of draws.
        confidence: in (0, 1).
    """
    count, factor = len(synthetic), root(real.covariance)
    weights = np.stack([np.bincount(positions, minlength=count) for positions in _drawn(count, seed, draws)]).astype(np.uint16)
    whitened, norms, sums = np.empty((count, factor.shape[1])), np.empty(count), np.zeros((draws, len(real.mean)))
    for start in range(0, count, CHUNK):
        some = slice(start, start + CHUNK)
        rows = synthetic[some] - real.mean
        whitened[some], norms[some] = rows @ factor, np.square(rows).sum(1)
        sums += weights[:, some] @ rows
    values = []
    for drawn, difference in zip(track(weights, "FID's interval", "draw"), sums / count, strict=True):
        square = difference @ difference
        trace = (drawn @ norms - count * square) / (count - 1)
        values.append(square + np.trace(real.covariance) + trace - 2 * trace_of_root(_products(whitened, drawn)))
    return _interval(frechet(real, moments(synthetic)), values, confidence)


def _products(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the covariance of rows [M, r] that stand there ``weights`` times, or a smaller matrix with its eigenvalues but 0."""
    count, kept = int(weights.sum()), weights.nonzero()[0]
    mean, scale = weights @ rows / count, np.sqrt(weights / (count - 1))[:, None]
    if len(kept) <= rows.shape[1]:
        few = (rows[kept] - mean) * scale[kept]
        return few @ few.T
    parts = ((rows[some] - mean) * scale[some] for some in np.array_split(kept, -(-len(kept) // CHUNK)))
    return sum(part.T @ part for part in parts)


def _interval(whole: float, values: list[float], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) - np.mean(values) + whole
    return float(low), float(high)


def _drawn(count: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Give positions [count] with replacement; each draw has its own generator."""
    for number in track(range(draws), "bootstrap", "draw"):
        yield numpy_generator(seed, "bootstrap", number).integers(count, size=count)
