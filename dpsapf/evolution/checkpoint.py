"""What changes from round to round, and how a checkpoint keeps it."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from dpsapf.privacy.meter import Meter
from dpsapf.support.checkpoint import State, named


@dataclass
class Evolution:
    """Everything that changes from round to round; a round's randomness comes from its number.

    Attributes:
        images: of the last round, uint8 [n, R, R, 3].
        meter: what was measured so far.
        started: when it would have begun without a break, by `time.monotonic`.
        votes: noisy votes of each round so far, float64 [n], or [L n] where variations are voted on.
        written: parts of the population, the last generation and copies of it, that are in its file.
    """

    images: np.ndarray
    meter: Meter
    started: float
    votes: list[np.ndarray] = field(default_factory=list)
    written: int = 0


def contents(state: Evolution) -> State:
    """Give everything that a checkpoint keeps of a state that has gone through a round at least."""
    measured, measures = state.meter.state()
    tensors = {"images": torch.from_numpy(state.images), "votes": torch.from_numpy(np.stack(state.votes))}
    tensors |= {f"meter/{name}": value for name, value in measures.items()}
    return {"measured": measured, "seconds": time.monotonic() - state.started, "written": state.written}, tensors


def restored(meter: Meter, start: float, facts: dict, tensors: dict[str, torch.Tensor]) -> Evolution:
    """Make the state that `contents` gave, and let the meter go on from it.

    Args:
        meter: of this run, which has measured nothing yet.
        start: when this run began, by `time.monotonic`.
        facts: and
        tensors: as `contents` gave them.
    """
    meter.restore(facts["measured"], named(tensors, "meter/"))
    return Evolution(tensors["images"].numpy(), meter, start - facts["seconds"], list(tensors["votes"].numpy()), facts["written"])
