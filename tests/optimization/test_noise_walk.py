"""How far noise carries an adapter and what that breaks: by hand, against real training on noise, and where it is not known."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import COLUMNS, FRAGILITY_SHRUNK, LORA_PARAMETERS, MATRIX, SCALE
from dpsapf.experiment.settings import UpdateConfig
from dpsapf.optimization.noise_walk import MOST_RANK, NoiseWalk, level_ranks, noise_walk, squared_walk
from dpsapf.optimization.optimizers import build_optimizer
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError


def test_one_step_of_adam_is_the_learning_rate_and_of_sgd_the_noise():
    assert squared_walk("adamw", 1, "constant", 0.0, 0.3) == pytest.approx(1.0, rel=1e-4)
    assert squared_walk("sgd", 1, "constant", 0.0, 0.3) == pytest.approx(0.09, rel=0.05)


def test_momentum_by_hand():
    """Step t of K contributes 1 + 0.9 + ... over what is left: of unit noise, the sum of squares."""
    weights = [sum(0.9**k for k in range(5 - t)) for t in range(5)]
    assert squared_walk("sgd", 5, "constant", 0.0, 1.0) == pytest.approx(sum(w**2 for w in weights), rel=0.05)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "warm-up"])
def test_adam_against_a_loop_of_its_own(schedule):
    """Many short runs in double precision, the schedule and the weight average written out."""
    parameter, generator = torch.nn.Parameter(torch.zeros(40_000, dtype=torch.float64)), torch.Generator().manual_seed(5)
    optimizer, average = torch.optim.Adam([parameter], lr=2.0), torch.zeros(40_000, dtype=torch.float64)
    for step in range(12):
        share = step / 12
        factors = {"constant": 1, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        factors["warm-up"] = min(1, 3 * share + 1 / 4)
        optimizer.param_groups[0]["lr"] = 2.0 * factors[schedule]
        parameter.grad = 7.0 * torch.randn(40_000, generator=generator, dtype=torch.float64)
        optimizer.step()
        keep = min(0.8, (2 + step) / (11 + step))
        average = keep * average + (1 - keep) * parameter.detach()
    expected = float((average**2).mean()) / 4
    assert squared_walk("adamw", 12, schedule, 0.8, 7.0) == pytest.approx(expected, rel=0.04)
    assert squared_walk("adamw-8bit", 12, schedule, 0.8, 7.0) == squared_walk("adamw", 12, schedule, 0.8, 7.0)


def test_adams_walk_does_not_know_the_noises_size():
    walks = [squared_walk("adamw", 15, "constant", 0.8, deviation) for deviation in (0.01, 1.0, 0.0)]
    assert walks == pytest.approx([walks[0]] * 3, rel=1e-3)
    assert walks[0] < squared_walk("adamw", 15, "constant", 0.0, 0.01), "the average lags behind"


def walk(frozen=False):
    return NoiseWalk(np.array([2e-5, 1e-6]), np.array([256, 512]), np.array([32, 64]), walk=20.0, frozen=frozen)


def test_rises_by_hand():
    energy = 20 * 0.05**2
    expected = [2e-5 * 256 * energy * (1 + 96 * energy), 1e-6 * 512 * energy * (1 + 192 * energy)]
    assert walk().rises(0.05).tolist() == pytest.approx(expected)
    assert walk(frozen=True).rises(0.05).tolist() == pytest.approx([2e-5 * 256 * energy, 1e-6 * 512 * energy])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tolerance", [1e-6, 0.1, 3.0])
def test_the_largest_rate_breaks_as_much_as_is_tolerated(frozen, tolerance):
    rate = walk(frozen).largest_rate(tolerance)
    assert walk(frozen).rises(rate).sum() == pytest.approx(tolerance)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_linear_model_breaks_as_predicted(frozen):
    """Prediction W x of white x: B and A walk on noise, and the mean squared change of the prediction is R."""
    rank, rows, columns, rate, steps = 2, 30, 40, 0.05, 15
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(60):
        a = torch.nn.Parameter((2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns))
        b = torch.nn.Parameter(torch.zeros(rows, rank))
        optimizer = build_optimizer("adamw", [b] if frozen else [a, b], rate, 1.0)
        for _ in range(steps):
            a.grad, b.grad = torch.randn(a.shape, generator=generator), torch.randn(b.shape, generator=generator)
            optimizer.step()
        found.append(float((b @ a).detach().square().sum()) / rows)  # per entry of the prediction
    h = np.array([rank / 3 / (rank * (rows + columns))])  # E ||BA||^2/rows = rank e/3 with A at its start; over e p
    distance = squared_walk("adamw", steps, "constant", 0, 1)
    one = NoiseWalk(h, np.array([rank * (rows + columns)]), np.array([columns]), distance, frozen)
    assert float(one.rises(rate)[0]) == pytest.approx(np.mean(found), rel=4 * np.std(found) / np.mean(found) / 60**0.5 + 0.02)


def test_ranks_that_break_as_much_in_every_matrix():
    """Equal matrices keep the common rank; of unequal ones the fragile get less, and together no more breaks."""
    assert level_ranks(np.full(5, 0.02), 4).tolist() == [4] * 5
    assert level_ranks(np.array([0.04, 0.02, 0.011]), 4).tolist() == [2, 5, 9], "in all 0.06975 of 0.071"
    assert level_ranks(np.array([1.0, 1e-9]), 4).tolist() == [3, 4 * MOST_RANK], (
        "what breaks nothing gets the largest rank, at the other's cost"
    )


@hypothesis.given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8), st.integers(1, 5))
def test_no_more_breaks_than_with_the_common_rank(rises, rank):
    """And no further rank would fit: against every single addition to the least."""
    rises = np.array(rises)
    ranks = level_ranks(rises, rank)
    total = (ranks * rises / rank).sum()
    assert total <= rises.sum() * (1 + 1e-12) and ranks.min() >= 1 and ranks.max() <= MOST_RANK * rank
    growing = [m for m in range(len(rises)) if ranks[m] < MOST_RANK * rank]
    if growing:
        least = min(growing, key=lambda m: rises[m] * (ranks[m] + 1))
        assert total + rises[least] / rank > rises.sum() * (1 - 1e-12)


@pytest.fixture
def files(tmp_path):
    names = ["a", "b", "c"]
    path = tmp_path / "fragility.csv"
    pd.DataFrame({MATRIX: names, FRAGILITY_SHRUNK: [1e-5, 2e-5, 3e-5], COLUMNS: [8, 16, 32], SCALE: 2.0}).to_csv(
        path, index=False
    )
    return path, pd.DataFrame({MATRIX: ["c", "a"], LORA_PARAMETERS: [40, 24]})


def test_files_are_matched_by_name(files, plan):
    settings = UpdateConfig(lora_rank=2, lora_alpha=4.0, ema_decay=0.8, learning_rate_schedule="cosine")
    found = noise_walk(*files, plan, settings)
    assert found.fragility.tolist() == [3e-5, 1e-5] and found.columns.tolist() == [32, 8]
    assert found.parameters.tolist() == [80, 48], "rank 2"
    release = plan.releases[-1]
    assert found.walk == pytest.approx(squared_walk("adamw", release.steps, "cosine", 0.8, 1.0), rel=1e-3) and not found.frozen
    sgd = noise_walk(*files, replace(plan, run=replace(plan.run, optimizer="sgd", adapter="ffa-lora")), settings)
    deviation = release.noise_multiplier * release.sensitivity / (release.sampling_rate * plan.population)
    assert sgd.walk == squared_walk("sgd", release.steps, "cosine", 0.8, deviation) and sgd.frozen


def test_what_was_not_measured_is_refused(files, plan):
    path, table = files
    with pytest.raises(UserError, match="--fragility = None: .*run measure-fragility first"):
        noise_walk(None, table, plan, UpdateConfig())
    with pytest.raises(UserError, match="lacks matrices of the run"):
        noise_walk(path, table.assign(**{MATRIX: ["a", "d"]}), plan, UpdateConfig())


def test_what_was_measured_at_another_scale_is_refused(files, plan):
    """Fragility grows with the square of alpha/rank."""
    path, table = files
    noise_walk(path, table, plan, UpdateConfig(lora_rank=4, lora_alpha=8.0))
    with pytest.raises(UserError, match="scale = 2.0: .* trains at 4: run measure-fragility again"):
        noise_walk(path, table, plan, UpdateConfig(lora_rank=2, lora_alpha=8.0))
    pd.read_csv(path).drop(columns=SCALE).to_csv(path, index=False)
    with pytest.raises(UserError, match="scale = None: .* trains at 2: "):
        noise_walk(path, table, plan, UpdateConfig(lora_rank=4, lora_alpha=8.0))
