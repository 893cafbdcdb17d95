"""Selection that weighs what a matrix can learn against what noise in it breaks.

One step of DP-SGD moves matrix m by its mean clipped gradient, of energy S_m, and by noise, of energy N_m. Let the loss
rise by h_m per unit of energy that is put into m. With a step of length t on the matrices T, the descent lemma gives a
decrease of t sum S - t^2 sum h (S + N), whose largest value over t is a quarter of

    J(T) = (sum_{m in T} S_m)^2 / sum_{m in T} h_m (S_m + N_m).

S comes from released scores, N from the plan, h from the public model: selection is post-processing. Two things are left
out: S is measured on the weights and h on their adapters, and clipping rescales an image's gradient to what is selected.
"""

import numpy as np

from dpsapf.experiment.records import Release


def signal_energy(scores: np.ndarray, release: Release, population: int) -> np.ndarray:
    """Estimate the energy of each matrix' part of the mean clipped gradient, in units of C^2, >= 0.

    Args:
        scores: released ``signal`` scores s + sigma_s C z of a batch, float64 [M].
        release: the scores' release; without noise sigma_s is 0.
        population: N; the mean is over the expected batch.

    Returns:
        max(0, s~^2 - (sigma_s C)^2) / (C q N)^2: E (s + sigma_s C z)^2 = s^2 + (sigma_s C)^2. Float64 [M].
    """
    bound, sigma = release.sensitivity or 1.0, release.noise_multiplier or 0.0
    squared = (scores / bound) ** 2 - sigma**2
    return np.maximum(0.0, squared) / (release.sampling_rate * population) ** 2


def noise_energy(parameters: np.ndarray, release: Release, population: int) -> np.ndarray:
    """Return the energy of DP-SGD's noise in each matrix, in a step and in units of C^2: (sigma / (q N))^2 p.

    Args:
        parameters: p, trained numbers of each matrix, int64 [M].
        release: DP-SGD's planned release; without a guarantee there is no noise.
        population: N.
    """
    sigma = release.noise_multiplier or 0.0
    return (sigma / (release.sampling_rate * population)) ** 2 * parameters


def by_worth(gain: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Order units by gain over cost, the best first; ties, and units without gain, by position. Int64 [U]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(gain > 0, gain / cost, 0.0)
    return np.argsort(-worth, kind="stable")


def best_count(gain: np.ndarray, cost: np.ndarray) -> int:
    """Return how many units, in the order of their worth, maximise (sum gain)^2 / sum cost; at least 1.

    With sums A and C, a unit of gain a and cost c raises J = A^2/C if and only if a/c > A^2/(C (2A + a)). Where a is small
    beside A this is A/(2C), the same for every unit, so that the best set is near a prefix.
    """
    order = by_worth(gain, cost)
    gains, costs = gain[order].cumsum(), cost[order].cumsum()
    if not gains[-1] > 0:
        return 1
    with np.errstate(divide="ignore"):
        return 1 + int(np.argmax(gains**2 / costs))


def affordable_count(gain: np.ndarray, cost: np.ndarray, budget: float) -> int:
    """Return how many units, in the order of their worth, cost no more than a budget together; at least 1.

    Training at a given learning rate learns the more the more signal is trained on, as long as noise breaks nothing: this is
    the greedy answer to the knapsack problem of the most signal within the budget.
    """
    return max(1, int((cost[by_worth(gain, cost)].cumsum() <= budget).sum()))
