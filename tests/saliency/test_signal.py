"""The signal score: against one backward pass an image, its sensitivity, and what it says that energy does not."""

import dataclasses
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.experiment.columns import MATRIX
from dpsapf.privacy.clipping import AUTOMATIC_STABILITY, MARGIN
from dpsapf.privacy.mechanisms import Ranking, mechanism
from dpsapf.privacy.meter import Meter
from dpsapf.public_models.families.stable_diffusion import NoiseObjective
from dpsapf.public_models.latents import Pairs, draw_batch
from dpsapf.saliency.progress import Progress
from dpsapf.saliency.scores import SCORES, SIGNAL_BOUND, Bounds
from dpsapf.saliency.select import ranking
from dpsapf.saliency.signal import signal_norms
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from tests.tiny import candidates, tiny_latents, tiny_objective, tiny_unet

IMAGES = 12
OPTIONS = SimpleNamespace(micro_batch=5, device="cpu")


def pairs(latents=None):
    return draw_batch(latents or tiny_latents(IMAGES), torch.arange(IMAGES), 1, 1000, torch_generator(0, "pairs")).rows(
        0, IMAGES, "cpu"
    )


def norms(drawn, meter=None, micro_batch=5):
    unet = tiny_unet()
    options = SimpleNamespace(micro_batch=micro_batch, device="cpu")
    (found,) = signal_norms(unet, tiny_objective(), drawn, candidates(unet), options, Progress(meter or Meter(IMAGES))).opened()
    return found


def oracle(drawn):
    """Batch-of-one backward passes with real weight gradients; returns norms and each image's clipped gradient."""
    unet, objective = tiny_unet(), tiny_objective()
    weights = [unet.get_submodule(name).weight for name in candidates(unet)]
    clipped = []
    for image in range(len(drawn)):
        loss = objective.loss(unet, drawn.rows(image, image + 1, "cpu")).sum()
        gradients = [gradient.double() for gradient in torch.autograd.grad(loss, weights)]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        clipped.append([gradient * SIGNAL_BOUND * (1 - MARGIN) / (norm + AUTOMATIC_STABILITY) for gradient in gradients])
    return torch.stack([sum(image).norm() for image in zip(*clipped, strict=True)]), clipped


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_equals_the_batch_of_one_loop(micro_batch):
    expected, _ = oracle(pairs())
    torch.testing.assert_close(norms(pairs(), micro_batch=micro_batch), expected, rtol=1e-4, atol=1e-7)  # fp32


def test_what_one_image_adds_is_measured():
    meter = Meter(IMAGES)
    meter.batch(1.0, torch.Generator())
    norms(pairs(), meter, micro_batch=11)
    _, clipped = oracle(pairs())
    norms_alone = [math.sqrt(sum(float(part.square().sum()) for part in image)) for image in clipped]
    largest = meter.measured(0.0).largest_contribution  # of the first, and of the four that the probe took
    assert any(largest == pytest.approx(norm, rel=1e-3) for norm in norms_alone) and norms_alone[0] <= largest * (1 + 1e-3)
    assert meter.measured(0.0).not_additive < 1e-4  # fp32 passes in other micro-batches


@pytest.mark.parametrize("left_out", [0, 5, 11])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_neighbours_differ_by_at_most_the_sensitivity(left_out, scale):
    latents = tiny_latents(IMAGES)
    extreme = dataclasses.replace(latents, mean=latents.mean.clone())
    extreme.mean[left_out] *= scale
    drawn = pairs(extreme)
    rest = torch.arange(IMAGES)[torch.arange(IMAGES) != left_out]
    change = norms(drawn) - norms(drawn.units(rest, 1, "cpu"))
    assert 0 < change.norm() <= SIGNAL_BOUND * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 6), matrices=st.integers(1, 5), seed=st.integers(0, 10**6), aligned=st.booleans())
def test_the_proof_on_any_clipped_gradients(images, matrices, seed, aligned):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(1 if aligned else images, matrices, 3, generator=generator, dtype=torch.float64).expand(images, -1, -1)
    vectors = vectors / vectors.flatten(1).norm(dim=1)[:, None, None]
    whole, without = (part.sum(0).norm(dim=1) for part in (vectors, vectors[1:]))
    assert (whole - without).norm() <= 1 + 1e-12
    assert not aligned or (whole - without).norm() >= 1 - 1e-12, "the bound is reached by gradients that agree"


def test_half_the_sensitivity_would_be_broken():
    drawn = pairs()
    change = norms(drawn) - norms(drawn.units(torch.arange(1, IMAGES), 1, "cpu"))
    alone = norms(drawn.units(torch.arange(1), 1, "cpu"))
    assert max(change.norm(), alone.norm()) > 0.5 * SIGNAL_BOUND


def test_gradients_that_cancel_have_energy_and_no_signal():
    class Opposed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.agreed, self.cancelled = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)

        def forward(self, latents, timesteps, embeddings, return_dict):
            rows = latents.reshape(-1, 1)
            return (self.agreed(rows.abs()) + self.cancelled(rows)).reshape(latents.shape)[None].swapaxes(0, 0)

    class Plain:
        config = SimpleNamespace(num_train_timesteps=1, prediction_type="epsilon")

        @staticmethod
        def add_noise(latents, noise, timesteps):
            return latents

    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
    target = torch.full((4, 1, 1, 1), 100.0)
    zeros = torch.zeros(4, dtype=torch.int64)
    drawn = Pairs(signs, target, zeros, zeros, torch.zeros(1, 1, 1))
    (found,) = signal_norms(
        Opposed(), NoiseObjective(Plain()), drawn, ["agreed", "cancelled"], OPTIONS, Progress(Meter(4))
    ).opened()
    assert found[0] == pytest.approx(4 * (1 - MARGIN) / math.sqrt(2), rel=1e-3) and found[1] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["exponential", "ptr"])
def test_mechanisms_for_monotone_scores_are_refused(name):
    units = ranking(pd.DataFrame({MATRIX: list("abc")}), None, 0.5, "signal", Bounds(clipping_norm=1.0, votes=1))
    assert isinstance(units, Ranking) and units.sensitivity == SIGNAL_BOUND == SCORES["signal"].sensitivity(None)
    with pytest.raises(UserError, match="needs a score that no image lowers"):
        mechanism(name).plan(units, 5.0, 1.0, 1e-5)


def test_no_hook_stays_on_the_model():
    unet = tiny_unet()
    signal_norms(unet, tiny_objective(), pairs(), candidates(unet), OPTIONS, Progress(Meter(IMAGES)))
    assert not any(module._forward_hooks for module in unet.modules())
