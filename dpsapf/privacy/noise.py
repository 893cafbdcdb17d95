"""The only place where privacy noise is drawn, and where the secret draws of a batch come from.

``seed`` reproduces a run bit by bit and so protects nobody who knows the seed; ``system`` is for a release:
it draws from a stream cipher whose key comes from the operating system, and no seed exists that could be stored.
"""

import math
import os
import typing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from dpsapf.experiment.methods import NoiseMode
from dpsapf.support.randomness import torch_generator

_TWISTER = slice(24, 24 + 8 * 624)  # bytes of torch's CPU generator state, after its seed and two counters
_ZEROS = np.zeros(2**20, dtype=np.uint8)  # what the cipher encrypts: the result is its key stream
_BLOCK = 2**16  # normals drawn at a time: few enough for the cache, many enough for torch's calls to be cheap
_SHARE = 2**18  # normals that are worth a thread, some 5 ms
_HALF = torch.tensor(0.5 + 2.0**-53, dtype=torch.float64)
_ONE = torch.tensor(-1.0 - 2.0**-52, dtype=torch.float64)


class NoiseSource(typing.Protocol):
    """Independent draws for one release.

    Attributes:
        kind: the noise mode that the source stands for: who knows the seed of ``seed`` knows the noise.
    """

    kind: typing.ClassVar[NoiseMode]

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) in the shape and place of a tensor, and in its precision at least."""

    def uniform(self, count: int) -> np.ndarray:
        """Draw from the open interval (0, 1), float64 [count]."""


class SeededNoise:
    """Reproducible draws, which protect nobody: their seed is stored with the run.

    Keeping it secret would not help. On a CPU, torch fills its Mersenne Twister from 32 bits of a seed, so that a
    search of 2^32 seeds finds a run's noise; the 63 bits of `child_seed` only keep draws of other names apart.

    Args:
        generator: torch's generator on the device of what gets the noise; it must be used for nothing else.
    """

    kind: typing.ClassVar[NoiseMode] = "seed"

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
    """Cryptographically secure draws: the key stream of AES-256 in counter mode.

    Key and first counter come from the operating system, for each source and each process that uses it; they are kept
    nowhere else. A source goes through its 2^128 counters in order and so never uses one twice. One thread at a time:
    for a large tensor a source starts threads of its own, each with a source, and so a key, of its own.

    A normal is half the sum of four, so that the bits of a released float do not give its noise away (Holohan and
    Braghin 2021, arXiv 2107.10138, as in Opacus' secure mode): four uniforms of 53 bits go into each, and into no other.
    """

    kind: typing.ClassVar[NoiseMode] = "system"

    def __init__(self) -> None:
        self._process = -1  # of the key: none yet

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) in fp64, on the CPU with as many threads as torch has; a tensor on another device gets a copy."""
        if not like.numel():
            return torch.empty(like.shape, dtype=torch.float64, device=like.device)
        draws = torch.from_numpy(np.empty(like.numel()))  # NumPy's memory comes in huge pages, unlike torch's
        threads = min(torch.get_num_threads(), len(draws) // _SHARE)
        if threads > 1:
            _draw_in_threads(draws, threads)
        else:
            self._draw(draws)
        return draws.reshape(like.shape).to(like.device)

    def uniform(self, count: int) -> np.ndarray:
        """Draw uniforms: 52 bits each, centred in their cells, so that none rounds to 1."""
        words = torch.empty(count, dtype=torch.int64)
        self._fill(words)
        return ((words.numpy().view(np.uint64) >> np.uint64(12)) + 0.5) * 2.0**-52

    @torch.inference_mode()
    def _draw(self, draws: torch.Tensor) -> None:
        """Overwrite a contiguous CPU tensor, float64 [n > 0], with normals."""
        blocks = math.ceil(len(draws) / _BLOCK)
        words = torch.empty(4, math.ceil(len(draws) / blocks), dtype=torch.int64)
        values = words.view(torch.float64)
        for part in draws.chunk(blocks):
            self._fill(words)
            values.copy_(words)  # in place: each integer becomes a float where it stands
            _normals(values, part)

    def _fill(self, words: torch.Tensor) -> None:
        """Overwrite integers with the next bytes of the key stream.

        Args:
            words: contiguous int64 on the CPU, any shape.
        """
        if self._process != os.getpid():  # a forked process would repeat its parent's draws
            self._stream = Cipher(AES256(os.urandom(32)), CTR(os.urandom(16))).encryptor()
            self._process = os.getpid()
        space = words.numpy().reshape(-1).view(np.uint8)
        for start in range(0, len(space), len(_ZEROS)):
            chunk = space[start : start + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: len(chunk)], chunk)


def _draw_in_threads(draws: torch.Tensor, threads: int) -> None:
    """Overwrite a contiguous CPU tensor [n] with normals, one part of it and one source to a thread.

    torch's own threads would meet after each of its calls, and wait there for whoever shares the cores. Here each
    thread gets one of them: the setting holds for the thread that makes it, and for those that start later.
    """
    setting = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done = [pool.submit(SystemNoise()._draw, part) for part in draws.chunk(threads)]
    finally:
        torch.set_num_threads(setting)
    for part in done:
        part.result()  # raises what the thread has raised


def _normals(words: torch.Tensor, draws: torch.Tensor) -> None:
    """Turn random integers into normals, each half the sum of four independent ones: one entry of a 4-vector.

    A standard normal vector y of four entries has y'y = -2 log(u1 u2). Of that, y1^2 + y2^2 is the share s, uniform, and
    the angle a of (y1, y2) is uniform: y1 = sqrt(-2 s log(u1 u2)) cos(a). It is half the sum of the entries of H y, four
    normals, too, where H is the 4 x 4 Hadamard matrix over 2. Two pairs by Box and Muller need as many uniforms for the
    same law, but twice the logarithms, roots and cosines.

    Args:
        words: uniform on the integers of 64 bits, float64 [4, n]; overwritten. In rows: u1, u2, s and a. The first three
            are rounded to multiples of 2^-53 in (0, 1]: never 0, so that the logarithm is finite.
        draws: gets N(0, 1), float64 [n], or shorter if fewer are wanted; its tails are right up to 12 in absolute value.
    """
    squares, other, shares, angles = words
    torch.add(_HALF, words[:2], alpha=2.0**-64, out=words[:2])
    torch.add(_ONE, shares, alpha=-(2.0**-63), out=shares)  # -2 s
    roots = squares.mul_(other).log_().mul_(shares).rsqrt_()  # of an infinite one the normal is 0
    angles.mul_(math.pi * 2.0**-63).cos_()
    torch.div(angles[: len(draws)], roots[: len(draws)], out=draws)


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
        ``value + N(0, (noise_multiplier * sensitivity)^2 I)``, scaled and added in fp64 and rounded once, to the type of
        ``value``: rounding is post-processing of the sum.
    """
    return torch.add(value.double(), source.normal(value).double(), alpha=noise_multiplier * sensitivity).to(value.dtype)


def add_gumbel_noise(value: np.ndarray, scale: float, source: NoiseSource) -> np.ndarray:
    """Add standard Gumbel noise times ``scale`` to each entry of a vector."""
    return value - scale * np.log(-np.log(source.uniform(len(value))))


def add_laplace_noise(value: float, scale: float, source: NoiseSource) -> float:
    """Add one draw of Laplace(0, scale), by inverting its distribution function."""
    centred = float(source.uniform(1)[0]) - 0.5
    return value - scale * math.copysign(1.0, centred) * math.log1p(-2 * abs(centred))
