import dataclasses
from types import SimpleNamespace

import pytest
import torch

from dpsapf.public_models.latents import denoising_loss, draw_pairs
from dpsapf.randomness import torch_generator
from dpsapf.saliency.score import saliency_scores
from dpsapf.saliency.scores import SCORES, Bounds
from tests.tiny import candidates, tiny_latents, tiny_scheduler, tiny_unet

EVERYONE = torch.arange(12)


def options(**changes):
    return SimpleNamespace(
        **(
            {
                "score": "energy",
                "mechanism": "gaussian",
                "votes": 3,
                "clipping_norm": 0.1,
                "micro_batch": 5,
                "seed": 0,
                "device": "cpu",
            }
            | changes
        )
    )


def scores(batch=EVERYONE, latents=None, **changes):
    unet = tiny_unet()
    return saliency_scores(unet, tiny_scheduler(), latents or tiny_latents(), batch, candidates(unet), options(**changes))


def oracle(bound):
    """Batch-of-one backward passes with real weight gradients."""
    unet, scheduler, latents = tiny_unet(), tiny_scheduler(), tiny_latents()
    names = candidates(unet)
    weights = [unet.get_submodule(name).weight for name in names]
    pairs = draw_pairs(latents, EVERYONE, 1, 1000, torch_generator(0, "saliency", "pairs"))
    total = torch.zeros(len(names), dtype=torch.float64)
    for image in range(12):
        loss = denoising_loss(unet, scheduler, pairs.rows(image, image + 1, "cpu")).sum()
        gradients = torch.autograd.grad(loss, weights)
        squared = torch.stack([gradient.double().square().sum() for gradient in gradients])
        total += squared * min(1.0, bound / squared.sum().sqrt().item()) ** 2
    return total


@pytest.mark.parametrize("bound", [0.05, 100.0])
def test_equals_the_batch_of_one_loop(bound):
    torch.testing.assert_close(scores(clipping_norm=bound), oracle(bound), rtol=1e-4, atol=1e-9)  # fp32 backward passes


def test_micro_batch_does_not_change_the_scores():
    torch.testing.assert_close(scores(micro_batch=1), scores(micro_batch=12), rtol=1e-4, atol=1e-9)  # fp32 reductions


@pytest.fixture
def same_draws(monkeypatch):
    """Give each image the same draws whoever else takes part: the coupling of the proofs."""

    def coupled(latents, batch, multiplicity, timesteps, generator):
        return draw_pairs(latents, EVERYONE, multiplicity, timesteps, generator).rows(0, len(batch), "cpu")

    monkeypatch.setattr("dpsapf.saliency.score.draw_pairs", coupled)


@pytest.mark.usefixtures("same_draws")
@pytest.mark.parametrize("name", list(SCORES))
def test_neighbours_differ_by_at_most_the_sensitivity(name):
    """Remove the last image, whose latents are huge."""
    latents = tiny_latents()
    extreme = dataclasses.replace(latents, mean=latents.mean.clone())
    extreme.mean[11] *= 1e3
    whole, without = (scores(latents=extreme, score=name, batch=batch) for batch in (EVERYONE, EVERYONE[:11]))
    limits = Bounds(clipping_norm=0.1, votes=3)
    change = whole - without
    assert change.norm() <= SCORES[name].sensitivity(limits) * (1 + 1e-6)  # fp32 norms in another micro-batch
    assert change.min() >= -1e-6 and change.norm() > 0


@pytest.mark.usefixtures("same_draws")
def test_without_clipping_neighbours_differ_by_more():
    whole, without = (scores(batch=batch, mechanism=None) for batch in (EVERYONE, EVERYONE[:11]))
    assert (whole - without).norm() > 0.1**2


@pytest.mark.parametrize("name", list(SCORES))
def test_micro_batches_change_no_score(name):
    torch.testing.assert_close(scores(score=name, micro_batch=1), scores(score=name, micro_batch=12), rtol=1e-4, atol=1e-9)


def test_an_empty_batch_scores_zero():
    assert scores(torch.tensor([], dtype=torch.int64)).abs().sum() == 0
