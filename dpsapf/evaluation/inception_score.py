"""Inception Score: are images sure of their class, and classes diverse?"""

import numpy as np

from dpsapf.support.errors import UserError


def inception_score(probabilities: np.ndarray, splits: int) -> tuple[float, float]:
    """Return the Inception Score's mean and standard deviation over splits (Salimans et al. 2016), in [1, classes].

    The score of a split is exp(mean KL(p(y|x) || p(y))), with p(y) the split's mean, in float64. Split i has rows i, i + splits,
    i + 2 splits, ...: images stand in the order of their classes, and a split of neighbours would have one class.

    Args:
        probabilities: of the classes [N, classes], each row sums to 1.
        splits: at least 1.

    Raises:
        UserError: there are fewer images than splits.
    """
    if not 1 <= splits <= len(probabilities):
        raise UserError("splits", splits, f"must be 1 to {len(probabilities)}, the number of images")
    scores = [_score(probabilities[start::splits].astype(np.float64)) for start in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(rows: np.ndarray) -> float:
    ratio = np.divide(rows, rows.mean(0), out=np.ones_like(rows), where=rows > 0)  # 0 log 0 = 0
    return np.exp((rows * np.log(ratio)).sum(1).mean())
