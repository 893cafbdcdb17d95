"""One step of DP-SGD (Abadi et al. 2016): per-image gradients, clipping, noise, update."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dpsapf.experiment.records import Release
from dpsapf.gradients.per_image import PerImageGradients
from dpsapf.privacy.clipping import Clipping
from dpsapf.privacy.meter import Meter, first_alone, joint_norm
from dpsapf.privacy.noise import NoiseSource
from dpsapf.public_models.latents import Batch, Pairs
from dpsapf.support.parallel import ALONE, Processes

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
    expected_batch: float,
    micro_batch: int,
    device: str,
    noise: NoiseSource,
    meter: Meter,
    processes: Processes = ALONE,
    resting: frozenset[int] = frozenset(),
) -> StepReport:
    """Set each parameter's ``grad`` to its privatised mean gradient.

    The K losses of a unit, an image or a user, are averaged before clipping (noise multiplicity, Dockhorn et al. 2023), so
    one unit's contribution to the sum has a joint L2 norm of at most ``release.sensitivity``. Noise is added once
    per step, by the leading process and also to an empty batch; without a guarantee there is none. The sum is
    divided by the *expected* batch size, which is data-free.

    Args:
        loss_function: pairs -> loss of each row [rows]; it calls ``gradients.model``.
        gradients: runs the backward pass and gives clipped sums.
        parameters: what is trained, in the order of ``gradients``.
        batch: the whole Poisson batch, B K rows.
        release: DP-SGD's planned release.
        multiplicity: K.
        clipping: kind of clipping.
        expected_batch: sampling rate times N.
        micro_batch: rows are processed in chunks of this many units; it cannot change the result.
        device: where the chunks are processed.
        noise: source of this step's privacy noise.
        meter: of the release; the step's first unit is processed alone, and what it adds is measured.
        processes: share the batch; each sums its units, one adds the noise.
        resting: positions of parameters that this step leaves alone: they count in no norm, and get noise like the others,
            which is thrown away with their ``grad``. So every step releases the same numbers.
    """
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    totals = torch.zeros(3, device=device)  # units, losses, norms
    units = processes.shard(len(batch) // multiplicity)
    for chunk in first_alone(units, micro_batch):
        loss = loss_function(batch.units(chunk, multiplicity, device))
        clipped, norms = gradients.clipped_sum(loss, release.sensitivity or math.inf, clipping, multiplicity, resting)
        if len(chunk) == 1:
            meter.contribution(joint_norm(clipped))
        torch._foreach_add_(sums, clipped)
        totals += torch.stack([torch.tensor(float(len(chunk)), device=device), loss.detach().sum() / multiplicity, norms.sum()])
    processes.add([*sums, totals])
    for position, total in enumerate(_released(sums, release, noise, meter, processes)):
        parameter = parameters[position]
        parameter.grad = None if position in resting else (total / expected_batch).to(parameter)
    count, losses, norms = totals.tolist()
    return StepReport(int(count), losses / count if count else math.nan, norms / count if count else math.nan)


def _released(
    sums: list[torch.Tensor], release: Release, noise: NoiseSource, meter: Meter, processes: Processes
) -> list[torch.Tensor]:
    """Add the noise once, in the leading process; exact without a guarantee."""
    if release.mechanism != "gaussian":
        meter.exact(release.sensitivity)
    elif processes.leads:
        sums = meter.gaussian(sums, release.noise_multiplier, release.sensitivity, noise)
    processes.agree(sums)
    return sums
