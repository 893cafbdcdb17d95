"""How far noise alone carries an adapter, how much that breaks, and the learning rate that breaks no more than that.

Under DP-SGD a parameter's gradient is nearly all noise, and Adam gives it steps of the learning rate whatever the noise's
size. After training each parameter has walked by an energy e = D eta^2, with eta the peak learning rate and D from the
optimizer, its schedule and the weight average. LoRA's update (alpha/r) B A starts at B = 0 and entries of A of variance
1/(3 columns). With B of energy e, and A of 1/(3 columns) + e, matrix m makes the mean squared prediction change by

    R_m = h_m p_m e (1 + 3 e columns_m),

with h_m its fragility (see `dpsapf.saliency.fragility`) and p_m its adapter's parameters; FFA-LoRA leaves A as it is, so that
the second factor is 1. Everything here is public: settings, and the public model on its own samples.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.experiment.columns import COLUMNS, FRAGILITY_SHRUNK, LORA_PARAMETERS, MATRIX, SCALE
from dpsapf.experiment.methods import TOLERATED_RISE, Optimizer
from dpsapf.experiment.records import Plan
from dpsapf.experiment.settings import UpdateConfig
from dpsapf.optimization.schedule import average_weight, rate_factor
from dpsapf.support.errors import UserError

MOST_RANK = 4  # times the config's rank: the largest that a matrix of its own rank gets
WALKERS = 10_000  # parameters that D is averaged over: a relative error near 1 %


@dataclass(frozen=True)
class NoiseWalk:
    """What noise does to M matrices in a run.

    Attributes:
        fragility: h [M].
        parameters: p, trained numbers of each matrix' adapter [M].
        columns: of each matrix [M].
        walk: D.
        frozen: A is not trained.
    """

    fragility: np.ndarray
    parameters: np.ndarray
    columns: np.ndarray
    walk: float
    frozen: bool

    def rises(self, rate: float) -> np.ndarray:
        """Return R at a peak learning rate, float64 [M]."""
        energy = self.walk * rate**2
        return self.fragility * self.parameters * energy * (1 + (0 if self.frozen else 3 * energy * self.columns))

    def largest_rate(self, tolerance: float = TOLERATED_RISE) -> float:
        """Return the peak learning rate at which R, summed over all matrices, is as large as is tolerated."""
        first = float((self.fragility * self.parameters).sum())
        second = 0.0 if self.frozen else 3 * float((self.fragility * self.parameters * self.columns).sum())
        energy = 2 * tolerance / (first + math.sqrt(first**2 + 4 * second * tolerance))
        return math.sqrt(energy / self.walk)


def level_ranks(rises: np.ndarray, rank: int) -> np.ndarray:
    """Give each matrix a rank of its own so that noise breaks about as much in each, and no more in all than before.

    With the scale of the update fixed, R_m grows in proportion to the rank. All start at rank 1, and the next rank goes where
    R_m is the smallest with it, up to `MOST_RANK` times the common rank.

    Args:
        rises: R of each matrix at the common rank, float64 [M], > 0.
        rank: the common rank.

    Returns:
        Ranks, int64 [M], each at least 1; R summed over the matrices is at most what it was.
    """
    each, ranks = rises / rank, np.ones(len(rises), np.int64)
    while True:
        after = np.where(ranks < MOST_RANK * rank, each * (ranks + 1), np.inf)
        place = int(np.argmin(after))
        if not (each * ranks).sum() + each[place] <= rises.sum() or after[place] == np.inf:
            return ranks
        ranks[place] += 1


def noise_walk(fragility: Path | None, table: pd.DataFrame, plan: Plan, settings: UpdateConfig) -> NoiseWalk:
    """Read what noise does to the matrices of a table in a planned run.

    Args:
        fragility: what `measure-fragility` wrote.
        table: matrices, of a candidate table.
        plan: of a run that trains LoRA or FFA-LoRA.
        settings: of its training.

    Raises:
        UserError: no fragilities, or not of these matrices, or measured at another scale alpha/rank than the training's.
    """
    if fragility is None:
        raise UserError("--fragility", None, "the run asks what noise breaks: run measure-fragility first")
    found = pd.read_csv(fragility).set_index(MATRIX)
    if not {*table[MATRIX]} <= {*found.index}:
        raise UserError("--fragility", str(fragility), "lacks matrices of the run: use its public model and candidates")
    found = found.loc[table[MATRIX]]
    _check_scale(found, fragility, settings)
    (release,) = (release for release in plan.releases if release.name == "dp-sgd")
    deviation = noise_deviation(release.noise_multiplier, release.sensitivity, release.sampling_rate * plan.population)
    return NoiseWalk(
        fragility=found[FRAGILITY_SHRUNK].to_numpy(),
        parameters=settings.lora_rank * table[LORA_PARAMETERS].to_numpy(),
        columns=found[COLUMNS].to_numpy(),
        walk=squared_walk(
            plan.run.optimizer or settings.optimizer,
            release.steps,
            settings.learning_rate_schedule,
            settings.ema_decay,
            deviation,
        ),
        frozen=plan.run.adapter == "ffa-lora",
    )


def _check_scale(found: pd.DataFrame, path: Path, settings: UpdateConfig) -> None:
    scale = settings.lora_alpha / settings.lora_rank
    measured = float(found[SCALE].iloc[0]) if SCALE in found else None
    if measured is None or not math.isclose(measured, scale):
        remedy = f"was measured for this alpha/rank, and the run trains at {scale:g}: run measure-fragility again, it is public"
        raise UserError(f"{path}: {SCALE}", measured, remedy)


def squared_walk(optimizer: Optimizer, steps: int, schedule: str, ema_decay: float, deviation: float) -> float:
    """Return D: the mean squared distance that noise carries a parameter, per squared peak learning rate.

    Args:
        optimizer: see `build_optimizer`; 8-bit moments are taken for exact ones.
        steps: of training.
        schedule: of the learning rate.
        ema_decay: decay of the weight average that is released; 0: none.
        deviation: standard deviation of the noise in each entry of the mean gradient; 0 is taken for 1.
    """
    import torch

    from dpsapf.optimization.optimizers import build_optimizer

    noise, deviation = torch.Generator().manual_seed(0), deviation or 1.0
    walker = torch.nn.Parameter(torch.zeros(WALKERS))
    average = torch.zeros(WALKERS)
    walks = build_optimizer("adamw" if optimizer == "adamw-8bit" else optimizer, [walker], 1.0, deviation)
    for step in range(steps):
        walks.param_groups[0]["lr"] = rate_factor(schedule, step, steps)
        walker.grad = deviation * torch.randn(WALKERS, generator=noise)
        walks.step()
        average.lerp_(walker.detach(), average_weight(ema_decay, step + 1) if ema_decay else 1.0)
    return float(average.square().mean())


def noise_deviation(noise_multiplier: float | None, sensitivity: float | None, expected_batch: float) -> float:
    """Return the standard deviation of the noise in each entry of the mean gradient, sigma C / B; 0 without noise."""
    return 0.0 if noise_multiplier is None else noise_multiplier * sensitivity / expected_batch
