"""What the last bits of released numbers tell: Mironov's attack (2012, doi 10.1145/2382196.2382264) on every release.

Each of many canaries takes part or not, by a coin. Who knows all sums but that asks of each released number whether it can be
reached at all from the sum with the canary, and from the sum without it. If only one of the two reaches it, that decides.

``python -m tests.contracts.last_bits`` prints how many are decided by noise in floating point, and by noise on a grid.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch

from dpsapf.experiment.records import Release
from dpsapf.privacy import meter
from dpsapf.privacy.accounting import epsilon
from dpsapf.privacy.noise import SystemNoise, add_gaussian_noise, grid
from dpsapf.privacy.values import Private
from tests.contracts.one_run_audit import epsilon_lower_bound

CANARIES, DELTA, ULPS = 2**14, 1e-6, 8
Add = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A release: sums without the canaries, what each adds to its own number, C and sigma.

    Attributes:
        name: of the release.
        sums: draws the sums of others, float64 [m].
        adds: what a canary adds.
        sensitivity: C.
        sigma: noise multiplier.
        dtype: in which sums are computed.
    """

    name: str
    sums: Callable[[np.random.Generator, int], np.ndarray]
    adds: float
    sensitivity: float
    sigma: float
    dtype: torch.dtype = torch.float64


def _energies(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw sums of what images add to scores: multiples of the grid, as `Meter.rows` makes them."""
    spacing = grid(1.0, count)
    return np.floor(random.uniform(0, 50, count) / spacing) * spacing


def _votes(random: np.random.Generator, count: int) -> np.ndarray:
    return random.poisson(3, count).astype(float)


def _gradients(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(0, 0.3, count).astype(np.float32).astype(float)


SUBJECTS = [
    *(Subject(f"scores, sigma_s {sigma:g}", _energies, 1.0, 1.0, sigma) for sigma in (1.55, 10.0, 120.0)),
    Subject("votes, sigma 5", _votes, 1.0, 1.0, 5.0),
    Subject("gradients, sigma 1", _gradients, 1.0, 1.0, 1.0, torch.float32),
]


def floating(value: torch.Tensor, sigma: float, sensitivity: float, spacing: float, source: object) -> torch.Tensor:
    """Add noise as floating point does: what was done here before the grid, and what most libraries do."""
    return torch.add(value.double(), source.normal(value).double(), alpha=sigma * sensitivity)


class Given:
    """A source whose draws are known."""

    kind = "system"

    def __init__(self, draws: torch.Tensor) -> None:
        self._draws = draws

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Return the draws."""
        return self._draws.clone()


def released(subject: Subject, add: Add, admitted: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Release the sums of everybody by the meter."""
    exact = torch.from_numpy(sums + subject.adds * admitted).to(subject.dtype)
    with patch.object(meter, "add_gaussian_noise", add):
        given = meter.Meter(1).gaussian(Private([exact]), subject.sigma, subject.sensitivity, SystemNoise())
    return given.values[0].numpy()


def reachable(subject: Subject, add: Add, found: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Say of each released number whether some noise next to the difference, in fp64, gives it from a sum; bool [m]."""
    value = torch.from_numpy(sums).to(subject.dtype)
    noise = torch.from_numpy(found - value.double().numpy()) / (subject.sigma * subject.sensitivity)
    spacing, reached, draws = grid(subject.sensitivity, len(sums)), np.zeros(len(sums), dtype=bool), noise.clone()
    for direction in (-torch.inf, torch.inf):
        draws = noise.clone()
        for _ in range(ULPS + 1):
            again = add(value, subject.sigma, subject.sensitivity, spacing, Given(draws))
            reached |= again.numpy() == found
            draws = torch.nextafter(draws, torch.tensor(direction, dtype=torch.float64))
    return reached


def attack(subject: Subject, add: Add, seed: int = 0) -> tuple[int, int]:
    """Decide who took part; returns how many are decided, and how many of them rightly."""
    random = np.random.default_rng(seed)
    sums, admitted = subject.sums(random, CANARIES), random.random(CANARIES) < 0.5
    found = released(subject, add, admitted, sums)
    without, along = (reachable(subject, add, found, sums + subject.adds * there) for there in (0, 1))
    assert (np.where(admitted, along, without)).all(), "what was released can be reached from what is true"
    decided = without != along
    return int(decided.sum()), int((along == admitted)[decided].sum())


def bound(decided: int, right: int) -> float:
    """Bound epsilon from below by guesses of those that were decided; 0 if none was."""
    return epsilon_lower_bound(right, guesses=decided, canaries=CANARIES, delta=DELTA) if decided else 0.0


def accounted(subject: Subject) -> float:
    """Return the epsilon that the accounting gives one release."""
    release = Release(name="dp-sgd", noise_multiplier=subject.sigma, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="system")
    return epsilon("pld", [release], DELTA)


def main() -> None:
    """Print the table."""
    print(f"{'release':22}{'epsilon':>9}{'noise':>18}{'decided':>10}{'right':>8}{'bound':>8}{'seconds':>9}")
    for subject in SUBJECTS:
        for name, add in (("floating point", floating), ("on a grid", add_gaussian_noise)):
            start = time.monotonic()
            decided, right = attack(subject, add)
            told = f"{decided:10}{right:8}{bound(decided, right):8.2f}{time.monotonic() - start:9.2f}"
            print(f"{subject.name:22}{accounted(subject):9.3f}{name:>18}{told}", flush=True)


if __name__ == "__main__":
    main()
