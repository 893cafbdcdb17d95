"""One run seed, named child seeds, generators passed as arguments; no global random state."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def child_seed(seed: int, *names: str | int) -> int:
    """Derive an independent seed from a run seed and the name of its use.

    Args:
        seed: the run's seed, any integer.
        names: what the child is for, e.g. ``"noise", 17``; another name gives another seed.

    Returns:
        An integer in [0, 2**63), the first 63 bits of a SHA-256 digest.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return NumPy's PCG64 generator for a named use of a run's seed (see `child_seed`)."""
    return np.random.default_rng(child_seed(seed, *names))


def counted_generator(key: int, number: int) -> np.random.Generator:
    """Return the numbered one of a key's independent generators; any of them is made without the others.

    Args:
        key: in [0, 2**128).
        number: in [0, 2**64): it stands in the highest word of Philox's counter, so that each has 2**192 blocks.
    """
    return np.random.Generator(np.random.Philox(key=key, counter=number << 192))


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> "torch.Generator":
    """Return torch's generator on ``device`` for a named use of a run's seed (see `child_seed`)."""
    import torch

    return torch.Generator(device).manual_seed(child_seed(seed, *names))
