"""Score ``signal``: how much of the *sum* of clipped gradients each matrix carries.

DP-SGD sees that sum. A matrix whose per-image gradients cancel is salient by energy, and useless under noise.

s_m = || sum_i u_im ||, with u_i the clipped gradient of image i over all M candidates together, ||u_i|| <= C.
Sensitivity: without image j, s_m changes by at most ||u_jm|| (reverse triangle inequality), so the L2 norm of all M changes is
at most (sum_m ||u_jm||^2)^(1/2) = ||u_j|| <= C. An image may lower a score, so mechanisms that need monotone scores
are refused.
"""

import typing
from collections.abc import Iterator

import torch

from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.privacy.meter import first_alone
from dpsapf.privacy.values import Private
from dpsapf.public_models.families.family import Objective
from dpsapf.public_models.latents import Batch, Pairs
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.scores import SIGNAL_BOUND
from dpsapf.support.replay import Replay

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import CompareScores, ScoreSaliency


def signal_norms(
    denoiser: torch.nn.Module,
    objective: Objective,
    batch: Batch,
    names: list[str],
    options: "ScoreSaliency | CompareScores",
    progress: Progress,
) -> Private:
    """Sum clipped gradients over images, and take each matrix' norm.

    Memory grows with the candidates' parameters, once, in fp64.

    Args:
        denoiser: of the public model; its weights get no gradient.
        objective: what it was trained for.
        batch: one timestep and noise for each unit.
        names: candidate matrices, M names of linear layers or convolutions.
        options: micro-batch and device.
        progress: rows that are summed already, and the meter of the release; in the first round a process' first unit is
            processed alone, and what it adds is measured.

    Returns:
        Norms, one tensor, float64 [M].
    """
    weights = {f"{name}.weight": denoiser.get_submodule(name).weight for name in names}
    progress.begin([torch.zeros_like(weight, dtype=torch.float64) for weight in weights.values()])
    gradients, replay = GhostClipping(denoiser, weights), Replay(options.device)

    def clipped(*pairs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradients.clipped_sum(objective.loss(denoiser, Pairs(*pairs)), SIGNAL_BOUND, "automatic")[0])

    def sums_of(chunks: list[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], float]]:
        for chunk in chunks:
            yield list(replay(clipped, batch.units(chunk, 1, options.device).tensors)), 0.0

    for part in progress.parts(len(batch), options.micro_batch):
        rows = torch.arange(part.start, part.stop)
        chunks = first_alone(rows, options.micro_batch) if progress.rows == 0 else [rows] * bool(part)
        progress.add_clipped(chunks, sums_of)
    gradients.close()
    return Private([torch.stack([torch.linalg.vector_norm(part) for part in progress.total()])])
