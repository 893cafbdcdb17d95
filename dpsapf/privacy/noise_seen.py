"""What the noise of a release was like, step by step and tensor by tensor: measured on what came out, not on what was drawn."""

import secrets
from collections.abc import Iterable

import numpy as np
import torch
from scipy import stats

from dpsapf.privacy.evidence import CELLS, KEPT

COMPARED = 512  # of these, places at which it is compared with that of every other step
_EDGES = torch.from_numpy(stats.norm.ppf(np.arange(1, CELLS) / CELLS))


class NoiseSeen:
    """Counts standardised noise, which is N(0, 1) in a right release.

    Attributes:
        steps: sum of squares of each step.
        parts: likewise of each tensor, over all steps.
        sums: of each tensor, and last of all together, the square of the sum of its noise over its size, over all steps.
        sizes: numbers of each tensor.
        cells: how many of the numbers looked at fell into each of `CELLS` intervals of equal chance.
        repetition: smallest chance of a step's noise being so like an earlier one's, or the sum of all earlier ones, over all
            pairs.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.parts: list[float] = []
        self.sums: list[float] = []
        self.sizes: list[int] = []
        self.cells = [0] * CELLS
        self.repetition = 1.0
        self._places: list[torch.Tensor] = []
        self._sum = torch.zeros(0, dtype=torch.float64)
        self._earlier = torch.zeros(0, 0)

    @property
    def looked_at(self) -> int:
        """Number of places that are looked at one by one."""
        return sum(map(len, self._places))

    @property
    def sum_squares(self) -> float:
        """Sum of squares, over the places looked at, of the sum of all steps' noise over the root of their number."""
        return float(self._sum.square().sum()) / max(1, len(self.steps))

    def add(self, noise: Iterable[torch.Tensor], sizes: list[int]) -> None:
        """Count a step's noise: flat tensors one after the other, of these sizes.

        Raises:
            ValueError: the sizes are not those of the steps before.
        """
        if not self.steps:
            self._begin(sizes)
        if sizes != self.sizes:
            raise ValueError(f"a step has noise of sizes {sizes[:5]}, the steps before {self.sizes[:5]}")
        squares, sums, looked = [], [], []
        for part, places in zip(noise, self._places, strict=True):
            squares.append(part.square().sum())
            sums.append(part.sum())
            looked.append(part[places.to(part.device)])
        told, totals = torch.stack([torch.stack(squares), torch.stack(sums)]).cpu().numpy()
        self.steps.append(float(told.sum()))
        self.parts = (np.array(self.parts) + told).tolist()
        over = np.maximum(1, [*sizes, sum(sizes)])
        self.sums = (np.array(self.sums) + np.array([*totals, totals.sum()]) ** 2 / over).tolist()
        self._look(torch.cat(looked).cpu())

    def state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """Return what a checkpoint keeps: JSON-ready facts, and tensors."""
        facts = {name: getattr(self, name) for name in ("steps", "parts", "sums", "sizes", "cells", "repetition")}
        tensors = {f"places/{number}": places for number, places in enumerate(self._places)}
        return facts, tensors | {"sum": self._sum, "earlier": self._earlier}

    def restore(self, facts: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's state."""
        for name, value in facts.items():
            setattr(self, name, value)
        self._places = [tensors[f"places/{number}"] for number in range(len(self.sizes))]
        self._sum, self._earlier = tensors["sum"].clone(), tensors["earlier"].clone()

    def _begin(self, sizes: list[int]) -> None:
        """Draw the places: of each tensor its share of `KEPT`, and one at least."""
        random = np.random.default_rng(secrets.randbits(128))
        shares = [min(size, -(-KEPT * size // max(1, sum(sizes)))) for size in sizes]
        drawn = (random.choice(size, share, replace=False, shuffle=False) for size, share in zip(sizes, shares, strict=True))
        self._places = [torch.from_numpy(np.asarray(places, dtype=np.int64)) for places in drawn]
        self.sizes, self.parts, self.sums = list(sizes), [0.0] * len(sizes), [0.0] * (len(sizes) + 1)
        self._sum = torch.zeros(self.looked_at, dtype=torch.float64)
        self._earlier = torch.zeros(0, min(COMPARED, self.looked_at))

    def _look(self, noise: torch.Tensor) -> None:
        found = torch.bucketize(noise, _EDGES).bincount(minlength=CELLS)
        self.cells = [before + new for before, new in zip(self.cells, found.tolist(), strict=True)]
        some, before = _some(noise), _some(self._sum)
        others = torch.cat([self._earlier, before[None].float()]) if len(self._earlier) else self._earlier
        self.repetition = min(self.repetition, likeness(some, others))
        self._earlier = torch.cat([self._earlier, some[None].float()])
        self._sum += noise


def _some(noise: torch.Tensor) -> torch.Tensor:
    """Take `COMPARED` places, of all tensors."""
    return noise[:: max(1, len(noise) // COMPARED)][:COMPARED]


def likeness(one: torch.Tensor, others: torch.Tensor) -> float:
    """Return the smallest chance, over some vectors, that an independent normal one is so like it.

    The square of the cosine of two independent normal vectors of n entries is Beta(1/2, (n-1)/2).

    Args:
        one: float64 [n].
        others: fp32 [t, n], maybe none.
    """
    count = len(one)
    if count < 2 or not len(others):
        return 1.0
    if not one.any() or not others.any(1).all():
        return 0.0
    cosines = (others.double() @ one) / (others.double().norm(dim=1) * one.norm())
    return float(stats.beta.sf(float(cosines.square().max()), 0.5, (count - 1) / 2))
