"""Score ``signal``: how much of the *sum* of clipped gradients each matrix carries.

DP-SGD sees that sum. A matrix whose per-image gradients cancel is salient by energy, and useless under noise.

s_m = || sum_i u_im ||, with u_i the clipped gradient of image i over all M candidates together, ||u_i|| <= C.
Sensitivity: without image j, s_m changes by at most ||u_jm|| (reverse triangle inequality), so the L2 norm of all M changes is
at most (sum_m ||u_jm||^2)^(1/2) = ||u_j|| <= C. An image may lower a score, so mechanisms that need monotone scores
are refused.
"""

import typing

import torch

from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.privacy.meter import Meter, first_alone, joint_norm
from dpsapf.public_models.families.family import Objective
from dpsapf.public_models.latents import Batch
from dpsapf.saliency.scores import SIGNAL_BOUND
from dpsapf.support.progress import track

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import CompareScores, ScoreSaliency


def signal_norms(
    denoiser: torch.nn.Module,
    objective: Objective,
    batch: Batch,
    names: list[str],
    options: "ScoreSaliency | CompareScores",
    meter: Meter,
) -> torch.Tensor:
    """Sum clipped gradients over images, and take each matrix' norm; NOT private before a mechanism releases it.

    Memory grows with the candidates' parameters, once, in fp32.

    Args:
        denoiser: of the public model; its weights get no gradient.
        objective: what it was trained for.
        batch: one timestep and noise for each unit.
        names: candidate matrices, M names of linear layers or convolutions.
        options: micro-batch and device.
        meter: of the release; the first unit is processed alone, and what it adds is measured.

    Returns:
        Norms, float64 [M].
    """
    weights = {f"{name}.weight": denoiser.get_submodule(name).weight for name in names}
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights.values()]
    gradients = GhostClipping(denoiser, weights)
    for chunk in track(first_alone(torch.arange(len(batch)), options.micro_batch), "saliency", "batch"):
        loss = objective.loss(denoiser, batch.units(chunk, 1, options.device))
        clipped, _ = gradients.clipped_sum(loss, SIGNAL_BOUND, "automatic")
        if len(chunk) == 1:
            meter.contribution(joint_norm(clipped))
        torch._foreach_add_(sums, clipped)
    gradients.close()
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in sums])
