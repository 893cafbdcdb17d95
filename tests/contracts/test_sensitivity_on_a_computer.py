"""What one unit changes of the sum that noise is added to: computed in fp32, rounded to the grid, and still at most C.

Adding one term to a sum in floating point changes how all later ones are rounded (Casacuberta et al. 2022, arXiv 2207.10635).
Here hundreds of gradients are the same, which makes the sums, and their rounding, as large as they can be.
"""

import math
from fractions import Fraction

import pytest
import torch

from dpsapf.experiment.records import Release
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SystemNoise, grid
from dpsapf.public_models.latents import Pairs
from tests.one_image import ADAPTERS, drawn, median_norm, prepared
from tests.tiny import tiny_objective

UNITS = 300


def summed(kind, clipping, bound, micro_batch, *, present):
    """The sum, on the grid, over copies of one row and, last in the batch, one more: there, or zeroed out by being broken."""
    unet, parameters = prepared(kind)
    per_image, objective = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None), tiny_objective()
    row, seen = drawn().rows(0, 1, "cpu"), []
    *copies, prompts = (part.repeat(UNITS + 1, *[1] * (part.dim() - 1)) for part in row.tensors)
    batch = Pairs(*copies, prompts[: len(row.prompt_embeddings)])
    batch.latents[-1] *= 1.0 if present else math.nan

    class Looking(Meter):
        def gaussian(self, sums, *arguments):
            seen.extend(part.clone() for part in sums.opened())
            return super().gaussian(sums, *arguments)

    release = Release(name="dp-sgd", noise_multiplier=1.0, sensitivity=bound, sampling_rate=1.0, steps=1)
    private_gradient(
        lambda rows: objective.loss(per_image.model, rows),
        per_image,
        list(parameters.values()),
        batch,
        release,
        multiplicity=1,
        clipping=clipping,
        micro_batch=micro_batch,
        device="cpu",
        noise=SystemNoise(),
        meter=Looking(UNITS + 1),
    )
    flat = torch.cat([part.flatten() for part in seen])
    return (flat / grid(bound, len(flat))).round(), grid(bound, len(flat))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 7, 64, 512])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_one_unit_changes_the_sum_by_at_most_the_bound(kind, clipping, micro_batch):
    bound = 0.1 * median_norm(kind)
    (whole, spacing), (without, _) = (summed(kind, clipping, bound, micro_batch, present=there) for there in (True, False))
    squared = sum(int(step) ** 2 for step in (whole - without).tolist())
    assert Fraction(spacing) ** 2 * squared <= Fraction(bound) ** 2
    assert math.sqrt(squared) * spacing > bound / 4, "and the unit is there"
