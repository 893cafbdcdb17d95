"""What a release really does, counted where it happens: the only way to batches, to sums over them, and to noise.

A stage opens one `Meter` a release, draws its batches, adds up what units contribute and adds the noise through it, and closes it
into the spend record. Nothing in it comes from the plan, so that the audit compares what was planned with what was done.
"""

import math
import secrets
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, localcontext

import numpy as np
import torch
from scipy import special, stats

from dpsapf.experiment.records import Measured, Release
from dpsapf.privacy.noise import (
    DIGITS,
    NoiseSource,
    add_gaussian_noise,
    grid,
    gumbel_noise,
    laplace_noise,
    mode_of,
    rounded_down,
)
from dpsapf.privacy.noise_seen import NoiseSeen
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.privacy.values import Private, Released
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.parallel import ALONE, Processes

EDGE = 1e-15  # of the unit interval, where the normal quantile would be infinite
PROBED = 4  # units that are added up together, and then one by one
PROBE_EVERY = 8  # the probe is made at the first step, and at those that are a power of this
SumsOf = Callable[[list[torch.Tensor]], Iterator[tuple[list[torch.Tensor], torch.Tensor]]]
"""Positions of units, chunk by chunk -> of each chunk the clipped sums, and facts about it that are only logged."""


class Meter:
    """Counts one release.

    Attributes:
        population: N, the units that batches are drawn from: images, or users.
    """

    def __init__(self, population: int) -> None:
        self.population = population
        self._participation = np.zeros(population, dtype=np.int64)
        self._drawn = np.zeros(population, dtype=bool)  # in the last batch
        self._noise = NoiseSeen()
        self._facts: dict[str, typing.Any] = {
            "batches": [],
            "largest_contribution": 0.0,
            "strangers": 0,
            "surplus": 0,
            "not_additive": 0.0,
            "secret": None,
        }
        self._done: dict[str, typing.Any] = {"steps": 0}
        self._probed = 0  # the batch of the last probe
        self._added = 0  # units that were added up of the last batch
        self._votes = np.zeros(population, dtype=np.int64)  # of each unit in the last batch

    def batch(self, rate: float, generator: torch.Generator) -> torch.Tensor:
        """Draw a Poisson batch and count who is in it; arguments and result as `dpsapf.privacy.poisson.poisson_batch`."""
        drawn = poisson_batch(self.population, rate, self.secret(generator))
        self._only("sampling_rate", rate)
        self._facts["batches"].append(len(drawn))
        self._drawn = np.isin(np.arange(self.population), drawn.numpy())
        self._participation[self._drawn] += 1
        self._added = 0
        self._votes[:] = 0
        return drawn

    def secret(self, generator: torch.Generator) -> torch.Generator:
        """Note whether a generator of secret draws was seeded; return it."""
        self._facts["secret"] = "seed" if "seed" in (self._facts["secret"], mode_of(generator)) else "system"
        return generator

    def participants(self) -> torch.Tensor:
        """Return who was in a batch so far, ascending, int64 [B]: the batch itself if there was one."""
        return torch.from_numpy(np.flatnonzero(self._participation))

    def watched(self, users: torch.Tensor | None = None) -> Callable[[torch.Tensor], None]:
        """Return what is to be told of each private image that is read: it counts those of no unit in the batch.

        Args:
            users: whom each image is of, int64; None: an image is a unit.
        """

        def read(images: torch.Tensor) -> None:
            self._read(images if users is None else users[images])

        return read

    def contribution(self, norm: float) -> None:
        """Note the L2 norm that one unit added to a sum; what is not finite counts as the largest number."""
        norm = norm if math.isfinite(norm) else sys.float_info.max
        self._facts["largest_contribution"] = max(self._facts["largest_contribution"], norm)

    def rows(self, rows: torch.Tensor, sensitivity: float) -> torch.Tensor:
        """Add up what units contribute, each rounded down to the release's grid and measured.

        Args:
            rows: one unit each, >= 0, [b, M]; b may be 0.
            sensitivity: C, L2 norm of a row at most; infinite: nothing is rounded.

        Returns:
            Sums, float64 [M]; on the grid they are exact.
        """
        rows = rounded_down(rows, grid(sensitivity, rows.shape[1])) if math.isfinite(sensitivity) else rows.double()
        if len(rows):
            self.contribution(float(rows.norm(dim=1).max()))
        self._add_units(len(rows))
        return rows.sum(0)

    def votes(self, chosen: torch.Tensor, numbers: int, units: torch.Tensor) -> torch.Tensor:
        """Count what some units of the batch vote for: each adds 1 to one number.

        What a unit adds is measured by its votes since the batch was drawn.

        Args:
            chosen: number that each vote is for, int64 [b].
            numbers: n, that can be voted for.
            units: whose vote each is, int64 [b].

        Returns:
            Counts, float64 [n].
        """
        if len(chosen):
            np.add.at(self._votes, units.numpy(), 1)
            self.contribution(float(self._votes.max()))
        self._read(units)
        self._add_units(len(chosen))
        return chosen.bincount(minlength=numbers).double()

    def add(self, totals: list[torch.Tensor], chunks: list[torch.Tensor], sums_of: SumsOf) -> torch.Tensor | float:
        """Add up what units contribute, chunk by chunk; of a chunk of one its norm is measured.

        Args:
            totals: float64; the chunks' sums are added to them.
            chunks: positions of units, int64; see `first_alone`.
            sums_of: gives the clipped sums of chunks.

        Returns:
            The facts of all chunks, added up; 0 for none.
        """
        facts = 0.0
        self._add_units(sum(map(len, chunks)))
        for chunk, (added, told) in zip(chunks, sums_of(chunks), strict=True):
            if len(chunk) == 1:
                self.contribution(joint_norm(added))
            for total, part in zip(totals, added, strict=True):
                total.add_(part)
            facts = facts + told
            del added
        batches = len(self._facts["batches"])
        if chunks and batches != self._probed and _is_power(batches, PROBE_EVERY):
            self._probe(chunks, sums_of)
            self._probed = batches
        return facts

    def gaussian(
        self,
        sums: Private,
        noise_multiplier: float,
        sensitivity: float,
        source: NoiseSource,
        processes: Processes = ALONE,
    ) -> Released:
        """Release sums over units, of a joint L2 sensitivity, by one step of the Gaussian mechanism on a grid.

        Args:
            sums: tensors of any shape; float64 ones are overwritten.
            noise_multiplier: sigma.
            sensitivity: C, the L2 norm that one unit adds to all of them together at most.
            source: of this step's noise alone.
            processes: of which the leading one adds the noise, for all.
        """
        parts = [part.double() for part in sums.opened()]
        if processes.leads:
            sizes = [part.numel() for part in parts]
            spacing, scale = grid(sensitivity, sum(sizes)), noise_multiplier * sensitivity
            self._step("gaussian", noise_multiplier, sensitivity, source)

            def noise() -> Iterator[torch.Tensor]:
                for part in parts:
                    noisy = add_gaussian_noise(part, noise_multiplier, sensitivity, spacing, source)
                    yield (noisy - part).flatten() / scale
                    part.copy_(noisy)

            self._noise.add(noise(), sizes)
        processes.agree(parts)
        return self._released(parts)

    def gumbel(self, scores: np.ndarray, kept: int, sigma_s: float, sensitivity: float, source: NoiseSource) -> list[Decimal]:
        """Add the Gumbel noise of the exponential mechanism's ``kept`` draws, each of epsilon 2/(sigma_s sqrt(kept))."""
        scale = sensitivity * sigma_s * math.sqrt(kept) / 2
        noise = gumbel_noise(len(scores), Decimal(scale), source)
        self._step("exponential", sigma_s, sensitivity, source)
        self._drew(stats.gumbel_r.cdf(np.array([float(draw) for draw in noise]) / scale))
        with localcontext(prec=DIGITS):
            return [Decimal(float(score)) + draw for score, draw in zip(scores, noise, strict=True)]

    def laplace(self, gap: Decimal, sigma_s: float, sensitivity: float, source: NoiseSource) -> Decimal:
        """Add the Laplace noise of propose-test-release, epsilon 1/sigma_s, to a gap in units of the sensitivity."""
        noise = laplace_noise(Decimal(sigma_s), source)
        self._step("ptr", sigma_s, sensitivity, source)
        self._drew(stats.laplace.cdf(np.array([float(noise) / sigma_s])))
        with localcontext(prec=DIGITS):
            return gap + noise

    def exact(self, sums: Private, sensitivity: float | None = None) -> Released:
        """Count a step that is released without noise; ``sensitivity``: C, None if nothing was clipped."""
        self._only("mechanism", "none")
        self._only("sensitivity", sensitivity)
        self._done["steps"] += 1
        return self._released([part.double() for part in sums.opened()])

    def release(self, planned: Release) -> Release:
        """Say what was released, in the words of the plan; only the epsilon of a whole release is the plan's."""
        empty = {"mechanism": "none", "noise_multiplier": None, "sensitivity": None, "noise": None}
        return replace(planned, **(empty | self._done))

    def measured(self, seconds: float, device: str = "cpu") -> Measured:
        """Close: everything private that was seen, and what the process took; ``device``: whose memory is meant."""
        noise = self._noise
        return Measured(
            salt=secrets.token_hex(32),
            participation=tuple(np.bincount(self._participation).tolist()),
            sizes=tuple(noise.sizes),
            squares=tuple(noise.steps),
            parts=tuple(noise.parts),
            sums=tuple(noise.sums),
            cells=tuple(noise.cells),
            looked_at=noise.looked_at,
            sum_squares=noise.sum_squares,
            repetition=noise.repetition,
            seconds=seconds,
            peak_memory_mb=peak_memory_mb(device),
            **self._facts,
        )

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Return what a checkpoint keeps: JSON-ready facts, and tensors."""
        seen, tensors = self._noise.state()
        tensors = {f"noise/{name}": value for name, value in tensors.items()}
        tensors |= {"participation": torch.from_numpy(self._participation), "drawn": torch.from_numpy(self._drawn)}
        return {"facts": self._facts, "done": self._done, "noise": seen, "added": self._added}, tensors

    def restore(self, facts: dict, tensors: dict[str, torch.Tensor], leads: bool = True) -> None:
        """Go on from a checkpoint's state; ``leads``: in the leading process, which counts the units that were added up."""
        self._facts, self._done, self._added = facts["facts"], facts["done"], facts["added"] if leads else 0
        self._participation, self._drawn = (tensors[name].numpy().copy() for name in ("participation", "drawn"))
        seen = {name.removeprefix("noise/"): value for name, value in tensors.items() if name.startswith("noise/")}
        self._noise.restore(facts["noise"], seen)

    def agree(self, processes: Processes) -> None:
        """Join what the processes saw; all call it at once. Units that were added up are the leading process' from then on."""
        if processes.count == 1:
            return
        facts = self._facts
        facts |= {name: processes.largest(facts[name]) for name in ("largest_contribution", "not_additive")}
        facts["strangers"] = int(processes.largest(facts["strangers"]))
        added, self._added = int(processes.total(self._added)), 0
        self._add_units(added if processes.leads else 0)

    def _read(self, units: torch.Tensor) -> None:
        self._facts["strangers"] += int((~self._drawn[units.numpy()]).sum())

    def _add_units(self, count: int) -> None:
        self._added += count
        self._facts["surplus"] = max(self._facts["surplus"], self._added - int(self._drawn.sum()))

    def _released(self, parts: list[torch.Tensor]) -> Released:
        return Released(tuple(parts), self._done.get("sampling_rate", 1.0) * self.population)

    def _probe(self, chunks: list[torch.Tensor], sums_of: SumsOf) -> None:
        """Add up some units together and one by one: each is clipped by itself, and nothing else comes in.

        No more than the largest chunk has: units that are never in a pass together cannot change one another.
        """
        positions, size = torch.cat(chunks), min(PROBED, max(map(len, chunks)))
        some = positions[torch.from_numpy(np.random.default_rng(secrets.randbits(128)).permutation(len(positions))[:size])]
        if size < 2:
            return
        sums = sums_of([some, *some.split(1)])
        together, _ = next(sums)
        gap, most = [part.to(torch.float64, copy=True) for part in together], 0.0
        for alone, _ in sums:  # overwrites the one before on a GPU
            norm = joint_norm(alone)
            self.contribution(norm)
            most += norm
            for rest, part in zip(gap, alone, strict=True):
                rest.sub_(part)
        found = joint_norm(gap) / (most or 1.0)
        self._facts["not_additive"] = max(self._facts["not_additive"], found if math.isfinite(found) else sys.float_info.max)

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

    def _drew(self, quantiles: np.ndarray) -> None:
        """Count draws by their quantiles [n], taken to the normal's."""
        normals = torch.from_numpy(special.ndtri(np.clip(quantiles, EDGE, 1 - EDGE)))
        self._noise.add([normals], [len(normals)])


def first_alone(units: torch.Tensor, micro_batch: int) -> list[torch.Tensor]:
    """Split positions [b] into the first alone, so that what it adds can be measured, and the others by ``micro_batch``."""
    return [chunk for part in (units[:1], units[1:]) if len(part) for chunk in part.split(micro_batch)]


def joint_norm(parts: Iterable[torch.Tensor]) -> float:
    """Return the L2 norm of several tensors together, in fp64."""
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return math.hypot(*torch.stack(norms).tolist())  # the CPU waits for a GPU once


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
