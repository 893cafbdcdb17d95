"""Selection that weighs signal against noise: against exhaustive search, and its parts by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.experiment.columns import (
    FRAGILITY_SHRUNK,
    LAYER,
    LORA_PARAMETERS,
    MATRIX,
    NOISE_ENERGY,
    PARAMETERS,
    PREDICTED_RISE,
    SCORE,
    SIGNAL_ENERGY,
)
from dpsapf.experiment.records import Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.saliency.noise_aware import affordable_count, best_count, by_worth, noise_energy, signal_energy
from dpsapf.saliency.select import gap_ratio, worthwhile_units


def objective(gain, cost, chosen):
    return gain[list(chosen)].sum() ** 2 / cost[list(chosen)].sum()


def exhaustive(gain, cost):
    sets = (chosen for size in range(1, len(gain) + 1) for chosen in itertools.combinations(range(len(gain)), size))
    return max(objective(gain, cost, chosen) for chosen in sets)


def random_problem(seed, units=10, spread=2.0):
    generator = np.random.default_rng(seed)
    gain, noise, fragile = (np.exp(generator.normal(0, spread, units)) for _ in range(3))
    return gain, fragile * (gain + noise)


def test_the_scan_is_near_the_best_of_all_sets():
    ratios = []
    for seed in range(200):
        gain, cost = random_problem(seed)
        chosen = by_worth(gain, cost)[: best_count(gain, cost)]
        ratios.append(objective(gain, cost, chosen) / exhaustive(gain, cost))
    assert min(ratios) > 0.9 and np.mean(ratios) > 0.995


def test_another_order_is_further_from_the_best():
    """Sorted by signal alone, the scan loses a tenth and more."""
    ratios = []
    for seed in range(200):
        gain, cost = random_problem(seed)
        order = np.argsort(-gain)
        best = max(objective(gain, cost, order[:count]) for count in range(1, len(gain) + 1))
        ratios.append(best / exhaustive(gain, cost))
    assert np.mean(ratios) < 0.9


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-12, 1e12))
def test_units_of_the_curvature_do_not_matter(seed, scale):
    gain, cost = random_problem(seed)
    assert best_count(gain, cost) == best_count(gain, scale * cost)
    assert by_worth(gain, cost).tolist() == by_worth(gain, scale * cost).tolist()


def test_more_noise_chooses_fewer():
    gain = np.exp(-np.arange(30) / 4)
    counts = [best_count(gain, gain + noise) for noise in (1e-6, 1e-3, 1e-1, 10.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 30 and counts[-1] < 12


def test_what_has_no_signal_comes_last_and_one_is_always_kept():
    gain, cost = np.array([0.0, 2.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    assert by_worth(gain, cost).tolist() == [1, 3, 0, 2]
    assert best_count(gain, cost) == 2
    assert best_count(np.zeros(3), np.ones(3)) == 1


def test_a_strong_matrix_that_noise_breaks_is_left_out():
    gain = np.array([4.0, 1.0, 1.0])
    assert best_count(gain, np.array([1.0, 1.0, 1.0]) * (gain + 0.1)) == 3
    order = by_worth(gain, np.array([1000.0, 1.0, 1.0]) * (gain + 0.1))
    assert order.tolist() == [1, 2, 0] and best_count(gain, np.array([1000.0, 1.0, 1.0]) * (gain + 0.1)) == 2


def release(**changes):
    values = {"name": "saliency", "noise_multiplier": 5.0, "sensitivity": 1.0, "sampling_rate": 0.5, "steps": 1, "noise": "seed"}
    return Release(**(values | changes))


def test_signal_energy_is_that_of_the_mean_without_the_noise():
    exact, sigma = np.array([100.0, 20.0, 0.0]), 5.0
    noisy = exact + sigma * np.random.default_rng(0).standard_normal((200_000, 3))
    energies = signal_energy(noisy, release(), 400)
    np.testing.assert_allclose(energies[:, :2].mean(0), (exact[:2] / 200) ** 2, rtol=0.01)
    assert (energies >= 0).all() and energies[:, 2].mean() < (sigma / 200) ** 2
    assert signal_energy(
        exact, release(mechanism="none", noise_multiplier=None, sensitivity=None, noise=None), 400
    ) == pytest.approx((exact / 200) ** 2)


def test_noise_energy_is_that_of_a_step():
    planned = release(name="dp-sgd", noise_multiplier=2.0, sampling_rate=0.1, steps=7)
    draws = 2.0 / (0.1 * 400) * np.random.default_rng(0).standard_normal((4000, 30))
    assert noise_energy(np.array([30, 60]), planned, 400) == pytest.approx([0.05**2 * 30, 0.05**2 * 60])
    assert (draws**2).sum(1).mean() == pytest.approx(noise_energy(np.array([30]), planned, 400)[0], rel=0.02)


def frame(signal, noise, fragile, layers="aabb"):
    names = [f"m{index}" for index in range(len(signal))]
    columns = {MATRIX: names, LAYER: list(layers), SIGNAL_ENERGY: signal, NOISE_ENERGY: noise, FRAGILITY_SHRUNK: fragile}
    return pd.DataFrame(columns).assign(**{PARAMETERS: 4, LORA_PARAMETERS: 4})


def test_units_are_summed_and_a_ratio_keeps_as_many():
    table = frame([1.0, 1.0, 8.0, 0.0], [1.0] * 4, [1.0, 1.0, 1.0, 1.0])
    assert worthwhile_units(table, weighing(ratio=0.25)).tolist() == [False, False, True, False]
    assert worthwhile_units(table, weighing(ratio=0.5, level="layer")).tolist() == [False, False, True, True]
    assert worthwhile_units(table, weighing()).tolist() == [True, True, True, False]


def test_a_budget_is_spent_on_the_most_signal():
    """Worth 4, 3, 2, 1 per rise: the first two rise by 0.07, the third would be the straw."""
    table = frame([0.08, 0.15, 0.10, 0.02], [1e9] * 4, [1e9] * 4).assign(**{PREDICTED_RISE: [0.02, 0.05, 0.05, 0.02]})
    assert worthwhile_units(table, weighing(rule="noise-budget")).tolist() == [True, True, False, False]
    half = table.assign(**{PREDICTED_RISE: table[PREDICTED_RISE] / 2})
    assert worthwhile_units(half, weighing(rule="noise-budget")).tolist() == [True, True, True, True]
    assert worthwhile_units(half, weighing(rule="noise-budget", ratio=0.25)).tolist() == [True, False, False, False]
    assert worthwhile_units(half, weighing(rule="noise-budget", level="layer")).tolist() == [True] * 4
    assert worthwhile_units(table, weighing(rule="noise-budget", level="layer")).tolist() == [True, True, False, False]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.floats(1e-3, 1e3))
def test_what_is_affordable_is_near_the_best_within_the_budget(seed, budget):
    """Against all sets: greedy, stopping at the first that does not fit, loses less than its next unit."""
    gain, cost = random_problem(seed)
    order, count = by_worth(gain, cost), affordable_count(gain, cost, budget)
    assert count == 1 or cost[order[:count]].sum() <= budget
    sets = (np.array(chosen) for size in range(1, 11) for chosen in itertools.combinations(range(10), size))
    best = max((gain[chosen].sum() for chosen in sets if cost[chosen].sum() <= budget), default=0.0)
    assert gain[order[: count + 1]].sum() >= best * (1 - 1e-9), "Dantzig: with one unit more it exceeds every set that fits"


def weighing(rule="equal-curvature", **changes):
    values = {"dataset": "a", "public_model": "m", "method": "dp-sapf", "level": "matrix", "score": "signal", "rule": rule}
    return RunSpec(**(values | changes))


def test_the_largest_gap():
    table = pd.DataFrame({MATRIX: list("abcde"), SCORE: [1.0, 9.0, 8.0, 2.0, 0.5]})
    assert gap_ratio(table, "matrix") == pytest.approx(2 / 5)
    assert gap_ratio(table.head(1), "matrix") == 1.0
