"""What a release really does, counted where it happens: the only way to noise and to batches.

A stage opens one `Meter` a release, draws its batches and adds its noise through it, and closes it into the spend
record. Nothing in it comes from the plan, so that the audit compares what was planned with what was done.
"""

import math
import secrets
import sys
import typing
from collections.abc import Iterable

import numpy as np
import torch
from scipy import special, stats

from dpsapf.experiment.records import Measured, Release
from dpsapf.privacy.noise import NoiseSource, add_gaussian_noise, add_gumbel_noise, add_laplace_noise
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

KEPT = 4096  # numbers of a step's noise that are compared with another step's
EDGE = 1e-15  # of the unit interval, where the normal quantile would be infinite


class Meter:
    """Counts one release.

    Attributes:
        population: N, the units that batches are drawn from: images, or users.
    """

    def __init__(self, population: int) -> None:
        self.population = population
        self._participation = np.zeros(population, dtype=np.int64)
        self._noise: dict[str, torch.Tensor] = {}  # of the first step and of the last
        self._facts: dict[str, typing.Any] = {
            "batches": [],
            "largest_contribution": 0.0,
            "numbers": 0,
            "squares": 0.0,
            "repetition": 1.0,
        }
        self._done: dict[str, typing.Any] = {"steps": 0}

    def batch(self, rate: float, generator: torch.Generator) -> torch.Tensor:
        """Draw a Poisson batch and count who is in it; arguments and result as `dpsapf.privacy.poisson.poisson_batch`."""
        drawn = poisson_batch(self.population, rate, generator)
        self._only("sampling_rate", rate)
        self._facts["batches"].append(len(drawn))
        self._participation[drawn.numpy()] += 1
        return drawn

    def participants(self) -> torch.Tensor:
        """Return who was in a batch so far, ascending, int64 [B]: the batch itself if there was one."""
        return torch.from_numpy(np.flatnonzero(self._participation))

    def contribution(self, norm: float) -> None:
        """Note the L2 norm that one unit added to a sum; what is not finite counts as the largest number."""
        norm = norm if math.isfinite(norm) else sys.float_info.max
        self._facts["largest_contribution"] = max(self._facts["largest_contribution"], norm)

    def gaussian(
        self, sums: list[torch.Tensor], noise_multiplier: float, sensitivity: float, source: NoiseSource
    ) -> list[torch.Tensor]:
        """Release sums over units, of a joint L2 sensitivity, by one step of the Gaussian mechanism.

        Args:
            sums: tensors of any shape.
            noise_multiplier: sigma.
            sensitivity: C, the L2 norm that one unit adds to all of them together at most.
            source: of this step's noise alone.
        """
        released = [add_gaussian_noise(value, noise_multiplier, sensitivity, source) for value in sums]
        scale = noise_multiplier * sensitivity
        self._step("gaussian", noise_multiplier, sensitivity, source)
        self._added((after - before).flatten() / scale for before, after in zip(sums, released, strict=True))
        return released

    def gumbel(self, scores: np.ndarray, kept: int, sigma_s: float, sensitivity: float, source: NoiseSource) -> np.ndarray:
        """Add the Gumbel noise of the exponential mechanism's ``kept`` draws, each of epsilon 2/(sigma_s sqrt(kept))."""
        scale = sensitivity * sigma_s * math.sqrt(kept) / 2
        released = add_gumbel_noise(scores, scale, source)
        self._step("exponential", sigma_s, sensitivity, source)
        self._added([_as_normal(stats.gumbel_r.cdf((released - scores) / scale))])
        return released

    def laplace(self, gap: float, sigma_s: float, sensitivity: float, source: NoiseSource) -> float:
        """Add the Laplace noise of propose-test-release, epsilon 1/sigma_s, to a gap in units of the sensitivity."""
        released = add_laplace_noise(gap, sigma_s, source)
        self._step("ptr", sigma_s, sensitivity, source)
        self._added([_as_normal(stats.laplace.cdf(np.array([(released - gap) / sigma_s])))])
        return released

    def exact(self, sensitivity: float | None = None) -> None:
        """Count a step that is released without noise; ``sensitivity``: C, None if nothing was clipped."""
        self._only("mechanism", "none")
        self._only("sensitivity", sensitivity)
        self._done["steps"] += 1

    def release(self, planned: Release) -> Release:
        """Say what was released, in the words of the plan; only the epsilon of a whole release is the plan's."""
        empty = {"mechanism": "none", "noise_multiplier": None, "sensitivity": None, "noise": None}
        return replace(planned, **(empty | self._done))

    def measured(self, seconds: float) -> Measured:
        """Close: everything private that was seen."""
        took_part = np.bincount(self._participation)
        return Measured(salt=secrets.token_hex(32), participation=tuple(took_part.tolist()), seconds=seconds, **self._facts)

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Return what a checkpoint keeps: JSON-ready facts, and tensors."""
        tensors = {f"noise/{name}": value for name, value in self._noise.items()}
        return {"facts": self._facts, "done": self._done}, tensors | {"participation": torch.from_numpy(self._participation)}

    def restore(self, facts: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's state."""
        self._facts, self._done = facts["facts"], facts["done"]
        self._participation = tensors["participation"].numpy().copy()
        self._noise = {name.removeprefix("noise/"): tensors[name] for name in tensors if name.startswith("noise/")}

    def _step(self, mechanism: str, noise_multiplier: float, sensitivity: float, source: NoiseSource) -> None:
        self._only("mechanism", mechanism)
        self._only("noise_multiplier", noise_multiplier)
        self._only("sensitivity", sensitivity)
        self._only("noise", source.kind)
        self._done["steps"] += 1

    def _only(self, key: str, value: float | str | None) -> None:
        """Refuse a release that changes on the way: no plan describes it."""
        if self._done.setdefault(key, value) != value:
            raise UserError(key, value, f"was {self._done[key]} at an earlier step of the same release: a defect, report it")

    def _added(self, noise: Iterable[torch.Tensor]) -> None:
        """Measure standardised noise, flat tensors one after the other: how much, and whether it was there before."""
        kept, squares, missing = [], [], KEPT
        for part in noise:
            self._facts["numbers"] += part.numel()
            squares.append(part.double().square().sum())
            kept.append(part[:missing].double())
            missing -= len(kept[-1])
        self._facts["squares"] += math.fsum(torch.stack(squares).tolist())
        sample = torch.cat(kept).cpu()
        for earlier in self._noise.values():
            self._facts["repetition"] = min(self._facts["repetition"], likeness(sample, earlier))
        self._noise = {"first": self._noise.get("first", sample), "last": sample}


def first_alone(units: torch.Tensor, micro_batch: int) -> list[torch.Tensor]:
    """Split positions [b] into the first alone, so that what it adds can be measured, and the others by ``micro_batch``."""
    return [chunk for part in (units[:1], units[1:]) if len(part) for chunk in part.split(micro_batch)]


def joint_norm(parts: Iterable[torch.Tensor]) -> float:
    """Return the L2 norm of several tensors together, in fp64."""
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return math.hypot(*torch.stack(norms).tolist())  # the CPU waits for a GPU once


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the chance that independent normal vectors [n] have so large a cosine: its square is Beta(1/2, (n-1)/2)."""
    count = len(one)
    if count < 2:
        return 1.0
    if not one.any() or not other.any():
        return 0.0
    cosine = float(one @ other / (one.norm() * other.norm()))
    return float(stats.beta.sf(cosine**2, 0.5, (count - 1) / 2))


def _as_normal(uniform: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(special.ndtri(np.clip(uniform, EDGE, 1 - EDGE)))
