"""The oracle of per-image gradients: one row at a time with plain autograd, for every kind of trained parameter."""

import functools
import typing

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.methods import Adapter
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune.adapters import trainable
from dpsapf.privacy.clipping import MARGIN
from dpsapf.public_models.latents import draw_batch
from dpsapf.support.randomness import torch_generator
from tests.tiny import candidates, tiny_latents, tiny_objective, tiny_unet

BATCH = torch.arange(12)
ADAPTERS = typing.get_args(Adapter)
TOLERANCE = 3e-5  # relative, of the whole vector: with what norms add for rounding 2e-5, wrong clipping more than 3e-2


def prepared(kind="lora", modules=None):
    """The tiny UNet with one kind of trained parameter, moved off its start so that no gradient is trivially 0."""
    unet = tiny_unet()
    names = list(modules or candidates(unet)[:5])
    selection = pd.DataFrame({MATRIX: names, SELECTED: True})
    method = {"full": "dp-full", "attention": "dp-ldm", "weights": "no-lora"}.get(kind, "dp-lora")
    run = RunSpec(dataset="d", public_model="m", method=method, adapter=kind if method == "dp-lora" else None)
    parameters = trainable(unet, run, selection, 2, 2.0)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(0, index)))
    return unet, parameters


def drawn(multiplicity=1, batch=BATCH):
    whole = draw_batch(tiny_latents(), batch, multiplicity, 1000, torch_generator(0, "pairs"))
    return whole.rows(0, len(whole), "cpu")


@functools.cache
def row_gradients(kind="lora", multiplicity=1, modules=None):
    """Flat gradients [12 images, K rows, P]."""
    unet, parameters = prepared(kind, modules)
    objective, pairs = tiny_objective(), drawn(multiplicity)
    rows = []
    for row in range(len(pairs)):
        loss = objective.loss(unet, pairs.rows(row, row + 1, "cpu")).sum()
        rows.append(flat(torch.autograd.grad(loss, list(parameters.values()))))
    return torch.stack(rows).unflatten(0, (-1, multiplicity))


def clipped_sum(gradients, bound, clipping):
    """Clip each of [B, P] to a little less than the bound, which is the rule of `dpsapf.privacy.clipping`, and sum."""
    bound *= 1 - MARGIN
    norms = gradients.norm(dim=1, keepdim=True)
    factors = {"automatic": bound / (norms + 0.01), "flat": (bound / norms).clamp(max=1), "none": 1.0, "always": bound / norms}
    return (gradients * factors[clipping]).sum(0)


def oracle(multiplicity=1, bound=1.0, clipping="automatic", kind="lora", modules=None):
    """Average an image's rows, then clip, sum."""
    return clipped_sum(row_gradients(kind, multiplicity, modules).mean(1), bound, clipping)


def median_norm(kind="lora", multiplicity=1, modules=None):
    """A bound that clips half of the images."""
    return row_gradients(kind, multiplicity, modules).mean(1).norm(dim=1).median().item()


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def error(computed, expected):
    return ((computed - expected).norm() / expected.norm()).item()
