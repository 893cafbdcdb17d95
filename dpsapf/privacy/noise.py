"""The only place where privacy noise is drawn, and where the secret draws of a batch come from.

``seed`` reproduces a run bit by bit and so protects nobody who knows the seed; ``system`` is for a release:
it draws from the operating system's generator, and no seed exists that could be stored.
"""

import math
import os
import typing

import numpy as np
import torch

from dpsapf.experiment.methods import NoiseMode
from dpsapf.support.randomness import torch_generator

_TWISTER = slice(24, 24 + 8 * 624)  # bytes of torch's CPU generator state, after its seed and two counters


class NoiseSource(typing.Protocol):
    """Independent draws for one release.

    Attributes:
        kind: where the draws come from.
    """

    kind: NoiseMode

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) in the shape, dtype and place of a tensor."""

    def uniform(self, count: int) -> np.ndarray:
        """Draw from the open interval (0, 1), float64 [count]."""


class SeededNoise:
    """Reproducible draws.

    Args:
        generator: torch's generator on the device of what gets the noise; it must be used for nothing else.
    """

    kind: NoiseMode = "seed"

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) with torch's generator."""
        return torch.randn(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)

    def uniform(self, count: int) -> np.ndarray:
        """Draw uniforms with torch's generator."""
        draws = torch.rand(count, generator=self._generator, device=self._generator.device, dtype=torch.float64)
        return draws.clamp_min(2.0**-54).cpu().numpy()


class SystemNoise:
    """Draws from the operating system's cryptographic generator.

    A normal is half the sum of four, so that the bits of a released float do not give its noise away (Holohan and
    Braghin 2021, arXiv 2107.10138, as in Opacus' secure mode).
    """

    kind: NoiseMode = "system"

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) by inverting the normal distribution function."""
        from scipy.special import ndtri

        draws = sum(ndtri(self.uniform(like.numel())) for _ in range(4)) / 2
        return torch.from_numpy(draws).reshape(like.shape).to(like)

    def uniform(self, count: int) -> np.ndarray:
        """Draw uniforms: 52 bits each, centred in their cells, so that none rounds to 1."""
        bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(12)
        return (bits + 0.5) * 2.0**-52


def noise_source(mode: NoiseMode, generator: torch.Generator) -> NoiseSource:
    """Return the source of a mode; ``system`` leaves the generator alone."""
    return SystemNoise() if mode == "system" else SeededNoise(generator)


def secret_generator(mode: NoiseMode, seed: int, *names: str | int) -> torch.Generator:
    """Return the CPU generator of draws that the guarantee needs secret: who is in a batch, and each image's pairs.

    Pairs are drawn by position in the batch. With draws that are known, one image more would change those of all
    images behind it; with secret ones they are part of each image's own randomness, and only its own term changes.

    Args:
        mode: ``seed`` derives it from the run's seed and ``names``; ``system`` draws its state from the operating system.
        seed: the run's seed.
        names: what is drawn, e.g. stage and step.
    """
    return _system_generator() if mode == "system" else torch_generator(seed, *names)


def _system_generator() -> torch.Generator:
    """Fill all 624 words of a Mersenne Twister's state: ``manual_seed`` keeps 32 bits, few enough to try them all."""
    generator = torch.Generator()
    state = generator.get_state()
    words = state.numpy()[_TWISTER].view(np.uint64)
    words[:] = np.frombuffer(os.urandom(4 * len(words)), dtype=np.uint32)
    return generator.set_state(state)


def add_gaussian_noise(value: torch.Tensor, noise_multiplier: float, sensitivity: float, source: NoiseSource) -> torch.Tensor:
    """Release a sum by the Gaussian mechanism.

    Args:
        value: a sum over images, any shape, in which one image contributes an L2 norm of at most ``sensitivity``.
            A release over several tensors is private as a whole if their joint sensitivity is given for each.
        noise_multiplier: sigma > 0.
        sensitivity: L2 norm that one image adds to the sum at most, > 0.
        source: of this release alone.

    Returns:
        ``value + N(0, (noise_multiplier * sensitivity)^2 I)``.
    """
    return value + noise_multiplier * sensitivity * source.normal(value)


def add_gumbel_noise(value: np.ndarray, scale: float, source: NoiseSource) -> np.ndarray:
    """Add standard Gumbel noise times ``scale`` to each entry of a vector."""
    return value - scale * np.log(-np.log(source.uniform(len(value))))


def add_laplace_noise(value: float, scale: float, source: NoiseSource) -> float:
    """Add one draw of Laplace(0, scale), by inverting its distribution function."""
    centred = float(source.uniform(1)[0]) - 0.5
    return value - scale * math.copysign(1.0, centred) * math.log1p(-2 * abs(centred))
