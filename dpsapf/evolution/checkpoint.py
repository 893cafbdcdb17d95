"""Checkpoints that a killed evolve goes on from: safetensors, written atomically, bound to their settings; private."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dpsapf.privacy.meter import Meter
from dpsapf.support.files import atomic


@dataclass
class Evolution:
    """Everything that changes from round to round; a round's randomness comes from its number.

    Attributes:
        images: of the last round, uint8 [n, R, R, 3].
        meter: what was measured so far.
        started: when it would have begun without a break, by `time.monotonic`.
        votes: noisy votes of each round so far, float64 [n], or [L n] where variations are voted on.
    """

    images: np.ndarray
    meter: Meter
    started: float
    votes: list[np.ndarray] = field(default_factory=list)


def save_checkpoint(path: Path, state: Evolution, identity: str) -> None:
    """Write a checkpoint.

    Args:
        path: file to replace.
        state: what to keep.
        identity: digest of everything that the run depends on.
    """
    measured, measures = state.meter.state()
    tensors = {"images": torch.from_numpy(state.images), "votes": torch.from_numpy(np.stack(state.votes))}
    tensors |= {f"meter/{name}": value for name, value in measures.items()}
    facts = {"identity": identity, "measured": measured, "seconds": time.monotonic() - state.started}
    with atomic(path) as temporary:
        copies = {name: value.clone().contiguous() for name, value in tensors.items()}  # first and last noise may be the same
        save_file(copies, temporary, {"facts": json.dumps(facts)})


def load_checkpoint(path: Path, meter: Meter, identity: str, start: float) -> Evolution | None:
    """Read a checkpoint of the same identity, and let the meter go on from it; None if there is none.

    Args:
        path: the file.
        meter: of this run, which has measured nothing yet.
        identity: digest of everything that the run depends on.
        start: when this run began, by `time.monotonic`.
    """
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        if facts["identity"] != identity:
            return None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    prefix = "meter/"
    meter.restore(facts["measured"], {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
    return Evolution(tensors["images"].numpy(), meter, start - facts["seconds"], list(tensors["votes"].numpy()))
