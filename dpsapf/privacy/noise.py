"""The only place where privacy noise is drawn, and where the secret draws of a batch come from.

``seed`` reproduces a run bit by bit and so protects nobody who knows the seed; ``system`` is for a release:
it draws from a stream cipher whose key comes from the operating system, and no seed exists that could be stored.
"""

import math
import os
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from dpsapf.experiment.methods import NoiseMode
from dpsapf.support.randomness import torch_generator

GRID_SHARE = 2.0**-14  # of the sensitivity, by which rounding to the grid may raise it
DIGITS = 50  # of noise that decides a ranking, and of its sum with what it is added to
_BITS = 128  # of a uniform that such noise is made of
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

    def uniform(self, count: int) -> list[Decimal]:
        """Draw from the open interval (0, 1)."""


class SeededNoise:
    """Reproducible draws, which protect nobody: their seed is stored with the run.

    Keeping it secret would not help. On a CPU, torch fills its Mersenne Twister from 32 bits of a seed, so that a
    search of 2^32 seeds finds a run's noise; the 63 bits of `child_seed` only keep draws of other names apart.

    Args:
        generator: torch's generator on the device of what gets the noise; it must be used for nothing else.
        dtype: of normals; None: that of what gets the noise.
    """

    kind: typing.ClassVar[NoiseMode] = "seed"

    def __init__(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> None:
        self._generator, self._dtype = generator, dtype

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Draw N(0, 1) with torch's generator."""
        return torch.randn(like.shape, generator=self._generator, device=like.device, dtype=self._dtype or like.dtype)

    def uniform(self, count: int) -> list[Decimal]:
        """Draw uniforms with torch's generator, 53 bits each."""
        draws = torch.rand(count, generator=self._generator, device=self._generator.device, dtype=torch.float64)
        return [Decimal(draw) for draw in draws.clamp_min(2.0**-54).tolist()]


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

    def uniform(self, count: int) -> list[Decimal]:
        """Draw uniforms of 128 bits each, centred in their cells."""
        words = torch.empty(count, _BITS // 64, dtype=torch.int64)
        self._fill(words)
        with localcontext(prec=2 * _BITS):
            return [(int.from_bytes(row.tobytes(), "little") + Decimal("0.5")) / 2**_BITS for row in words.numpy()]

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


@dataclass(frozen=True)
class Draws:
    """All that a release draws in secret, by one mode: who is in a batch, each image's pairs, and the noise.

    Attributes:
        mode: ``seed`` derives them from the run's seed; ``system`` takes them from the operating system.
        seed: the run's seed.
        stage: what draws, a part of the name of each seed.
    """

    mode: NoiseMode
    seed: int
    stage: str

    def secret(self, *names: str | int) -> torch.Generator:
        """Return the CPU generator of draws that the guarantee needs secret: who is in a batch, and each image's pairs.

        Pairs are drawn by position in the batch. With draws that are known, one image more would change those of all
        images behind it; with secret ones they are part of each image's own randomness, and only its own term changes.

        Args:
            names: what is drawn, e.g. the step.
        """
        return _system_generator() if self.mode == "system" else torch_generator(self.seed, self.stage, *names)

    def noise(self, *names: str | int, device: str = "cpu", dtype: torch.dtype | None = None) -> NoiseSource:
        """Return the source of one release's noise, of one step if there are several.

        Args:
            names: of the release, e.g. the step.
            device: of what gets the noise; seeded noise is drawn there.
            dtype: of seeded normals; None: that of what gets the noise.
        """
        if self.mode == "system":
            return SystemNoise()
        return SeededNoise(torch_generator(self.seed, self.stage, *names, device=device), dtype)


def mode_of(generator: torch.Generator) -> NoiseMode:
    """Tell a generator that was seeded from one whose state came from the operating system: that one has no seed of its own."""
    return "system" if generator.initial_seed() == torch.Generator().initial_seed() else "seed"


def _system_generator() -> torch.Generator:
    """Fill all 624 words of a Mersenne Twister's state: ``manual_seed`` keeps 32 bits, few enough to try them all."""
    generator = torch.Generator()
    state = generator.get_state()
    words = state.numpy()[_TWISTER].view(np.uint64)
    words[:] = np.frombuffer(os.urandom(4 * len(words)), dtype=np.uint32)
    return generator.set_state(state)


def grid(sensitivity: float, numbers: int) -> float:
    """Return the grid that a release lies on: the largest power of two that is at most `GRID_SHARE` C / sqrt(d).

    Args:
        sensitivity: C > 0, L2 norm that one unit adds to all numbers together at most.
        numbers: d >= 1 that are released together.
    """
    _, exponent = math.frexp(GRID_SHARE * sensitivity / math.sqrt(numbers))
    return math.ldexp(1.0, exponent - 1)


def rounded_down(values: torch.Tensor, spacing: float) -> torch.Tensor:
    """Round to multiples of a power of two, none up; float64. Sums of them are exact."""
    return values.double().div_(spacing).floor_().mul_(spacing)


def add_gaussian_noise(
    value: torch.Tensor, noise_multiplier: float, sensitivity: float, spacing: float, source: NoiseSource
) -> torch.Tensor:
    """Release a sum by the Gaussian mechanism, on a grid.

    The sum and the noise are each rounded to the grid once, and added as whole numbers of its steps, which is exact. So the
    noise is drawn and rounded without the sum, every step of the grid can be reached from every sum, and the last bits of
    what is released tell nothing (Mironov 2012, doi 10.1145/2382196.2382264, reads them where noise in floating point is
    added to a number in floating point).

    Proof. For a whole number x, x + round(z) = round(x + z). So this is the rounded, and so post-processed, Gaussian mechanism
    on the rounded sum: the accountants' noise, exactly. Rounding the sum moves each of d numbers by at most half a step, so
    that one unit changes the rounded sum by at most its own L2 norm and one step times sqrt(d). By `grid` that is at most
    `GRID_SHARE` C, a sixteenth of what `dpsapf.privacy.clipping` keeps free; sums that lie on the grid already do not move.

    Whole numbers are exact up to 2^53. A sum over N units has at most 2^15 N sqrt(d) steps, noise 2^19 sigma sqrt(d): with d =
    2^32 numbers there is room for 4 million units and for sigma 10^5.

    What is left to trust: that z, computed in fp64, has the normal law. A step of the grid is 2^-14 C / sqrt(d), and fp64
    errs by some 2^-51 sigma C. So an error moves a number to the next step with a chance of some 2^-37 sigma sqrt(d), whatever
    the sum is: at sigma 1 one in 2^32 of 1,000 numbers, one in 2^27 of a million.

    Args:
        value: a sum over images, any shape, in which one image contributes an L2 norm of at most ``sensitivity``.
            A release over several tensors is private as a whole if their joint sensitivity and grid are given for each.
        noise_multiplier: sigma > 0.
        sensitivity: L2 norm that one image adds to the sum at most, > 0.
        spacing: step of the grid, a power of two.
        source: of this release alone.

    Returns:
        Multiples of ``spacing``, float64, in the shape of ``value``.
    """
    steps = source.normal(value).double().mul_(noise_multiplier * sensitivity / spacing).round_()
    return steps.add_(value.double().div(spacing).round_()).mul_(spacing)


def gumbel_noise(count: int, scale: Decimal, source: NoiseSource) -> list[Decimal]:
    """Draw Gumbel noise times ``scale``, to `DIGITS` digits."""
    with localcontext(prec=DIGITS):
        return [-scale * (-uniform.ln()).ln() for uniform in source.uniform(count)]


def laplace_noise(scale: Decimal, source: NoiseSource) -> Decimal:
    """Draw one number of Laplace(0, scale), by inverting its distribution function, to `DIGITS` digits."""
    (uniform,) = source.uniform(1)
    with localcontext(prec=DIGITS):
        tail = (2 * min(uniform, 1 - uniform)).ln()
        return scale * (tail if uniform < Decimal("0.5") else -tail)
