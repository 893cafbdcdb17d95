"""One step of DP-SGD (Abadi et al. 2016): per-image gradients, clipping, noise, update."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from dpsapf.experiment.records import Release
from dpsapf.gradients.per_image import PerImageGradients
from dpsapf.privacy.clipping import Clipping
from dpsapf.privacy.meter import Meter, first_alone
from dpsapf.privacy.noise import NoiseSource
from dpsapf.privacy.values import Private, Released
from dpsapf.public_models.latents import Batch, Pairs
from dpsapf.support.ahead import ahead
from dpsapf.support.parallel import ALONE, Processes
from dpsapf.support.replay import NO_REPLAY, Replay

LossFunction = Callable[[Pairs], torch.Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a step saw. Private: computed from the images outside the guarantee, for debugging only.

    Attributes:
        units: size of the Poisson batch.
        loss: mean loss, nan for an empty batch.
        gradient_norm: mean per-unit gradient norm before clipping, nan for an empty batch.
    """

    units: int
    loss: float
    gradient_norm: float


def private_gradient(
    loss_function: LossFunction,
    gradients: PerImageGradients,
    parameters: list[torch.nn.Parameter],
    batch: Batch,
    release: Release,
    *,
    multiplicity: int,
    clipping: Clipping,
    micro_batch: int,
    device: str,
    noise: NoiseSource,
    meter: Meter,
    processes: Processes = ALONE,
    resting: frozenset[int] = frozenset(),
    replay: Replay = NO_REPLAY,
) -> StepReport:
    """Set each parameter's ``grad`` to its privatised mean gradient.

    The K losses of a unit, an image or a user, are averaged before clipping (noise multiplicity, Dockhorn et al. 2023), so
    one unit's contribution to the sum has a joint L2 norm of at most ``release.sensitivity``. Noise is added once
    per step, by the leading process and also to an empty batch; without a guarantee there is none. The sum is
    divided by the *expected* batch size, which is data-free (`dpsapf.privacy.values.Released.means`).

    Args:
        loss_function: pairs -> loss of each row [rows]; it calls ``gradients.model``.
        gradients: runs the backward pass and gives clipped sums.
        parameters: what is trained, in the order of ``gradients``.
        batch: the whole Poisson batch, B K rows.
        release: DP-SGD's planned release.
        multiplicity: K.
        clipping: kind of clipping.
        micro_batch: rows are processed in chunks of this many units; it cannot change the result.
        device: where the chunks are processed.
        noise: source of this step's privacy noise.
        meter: of the release, which drew the batch; the step's first unit is processed alone, and what it adds is measured.
        processes: share the batch; each sums its units, one adds the noise.
        resting: positions of parameters that this step leaves alone: they count in no norm, and get noise like the others,
            which is thrown away with their ``grad``. So every step releases the same numbers.
        replay: of all steps together: micro-batches are recorded with it.
    """
    bound = release.sensitivity or math.inf

    def clipped(real: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        losses = loss_function(Pairs(*rows)) * real
        sums, norms = gradients.clipped_sum(losses, bound, clipping, multiplicity, resting)
        return torch.stack([losses.detach().sum() / multiplicity, norms.sum()]), *sums

    def sums_of(chunks: list[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        for chunk, rows in zip(chunks, _drawn(batch, chunks, multiplicity, micro_batch, replay), strict=True):
            real = torch.arange(len(rows)) < len(chunk) * multiplicity
            inputs = [part.to(device) for part in (real, *rows.tensors)]
            seen, *added = replay(clipped, tuple(inputs), (bound, clipping, multiplicity, resting))
            yield added, seen

    for parameter in parameters:
        parameter.grad = None
    sums, units = _zeros(parameters), processes.shard(len(batch) // multiplicity)
    facts = meter.add(sums, first_alone(units, micro_batch), sums_of)
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # units, losses, norms
    totals[0], totals[1:] = len(units), facts
    processes.add([*sums, totals])
    released = _released(Private(sums), release, noise, meter, processes)
    for position, (parameter, mean) in enumerate(zip(parameters, released.means(), strict=True)):
        parameter.grad = None if position in resting else mean.to(parameter)
    count, losses, norms = totals.tolist()
    return StepReport(int(count), losses / count if count else math.nan, norms / count if count else math.nan)


def _drawn(batch: Batch, chunks: list[torch.Tensor], multiplicity: int, micro_batch: int, replay: Replay) -> Iterable[Pairs]:
    """Draw the rows of each chunk; for a GPU all of one size, and while it does the chunk before."""
    if not replay.records:
        return (batch.units(chunk, multiplicity, "cpu") for chunk in chunks)
    return ahead(lambda chunk: batch.units(_filled(chunk, micro_batch), multiplicity, "cpu"), chunks)


def _filled(chunk: torch.Tensor, size: int) -> torch.Tensor:
    """Repeat the first of several positions up to a size, so that all chunks have one; a loss of a repetition is times 0."""
    return chunk if len(chunk) == 1 else torch.cat([chunk, chunk[:1].expand(size - len(chunk))])


def _zeros(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return zeros in the shape of each parameter, float64, as views of one tensor."""
    numbers = sum(parameter.numel() for parameter in parameters)
    flat = torch.zeros(numbers, dtype=torch.float64, device=parameters[0].device)
    parts = flat.split([parameter.numel() for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]


def _released(sums: Private, release: Release, noise: NoiseSource, meter: Meter, processes: Processes) -> Released:
    """Add the noise once, in the leading process; exact without a guarantee."""
    meter.agree(processes)
    if release.mechanism != "gaussian":
        return meter.exact(sums, release.sensitivity)
    return meter.gaussian(sums, release.noise_multiplier, release.sensitivity, noise, processes)
