import copy
import math
import typing

import pandas as pd
import pytest
import torch
from opacus.grad_sample import GradSampleModule

from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.finetune.per_image import per_image_gradients
from dpsapf.formats import MATRIX, SELECTED, Release
from dpsapf.methods import Adapter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.public_models.latents import denoising_loss, draw_pairs
from dpsapf.randomness import torch_generator
from dpsapf.runs import RunSpec
from tests.tiny import candidates, tiny_latents, tiny_scheduler, tiny_unet

BATCH = torch.arange(12)


def release(sigma=1.0, bound=1.0):
    return Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=bound, sampling_rate=0.5, steps=3)


def prepared(kind="lora", modules=None):
    """The tiny UNet with one kind of trained parameter, moved off its start so that no gradient is trivially 0."""
    unet = tiny_unet()
    names = modules or candidates(unet)[:5]
    selection = pd.DataFrame({MATRIX: names, SELECTED: True})
    method = {"full": "dp-full", "attention": "dp-ldm", "weights": "no-lora"}.get(kind, "dp-lora")
    run = RunSpec(dataset="d", public_model="m", method=method, adapter=kind if method == "dp-lora" else None)
    parameters = trainable(unet, run, selection, 2, 2.0)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch_generator(0, index)))
    return unet, parameters


def gradient(
    *,
    micro_batch=12,
    multiplicity=1,
    sigma=1e-9,
    bound=1.0,
    clipping="automatic",
    kind="lora",
    batch=BATCH,
    noise=0,
    modules=None,
):
    unet, parameters = prepared(kind, modules)
    per_image = per_image_gradients(unet, parameters, kind if kind in typing.get_args(Adapter) else None)
    scheduler = tiny_scheduler()
    pairs = draw_pairs(tiny_latents(), batch, multiplicity, 1000, torch_generator(0, "pairs"))
    report = private_gradient(
        lambda rows: denoising_loss(per_image.model, scheduler, rows),
        per_image,
        list(parameters.values()),
        pairs,
        release(sigma, bound),
        multiplicity=multiplicity,
        clipping=clipping,
        expected_batch=6.0,
        micro_batch=micro_batch,
        device="cpu",
        noise=SeededNoise(torch_generator(noise, "noise")),
    )
    return torch.cat([parameter.grad.flatten() for parameter in parameters.values()]), report


def oracle(multiplicity=1, bound=1.0, clipping="automatic", kind="lora", modules=None):
    """One image at a time with plain autograd, then clip, sum, divide."""
    unet, parameters = prepared(kind, modules)
    scheduler = tiny_scheduler()
    pairs = draw_pairs(tiny_latents(), BATCH, multiplicity, 1000, torch_generator(0, "pairs"))
    total = 0
    for image in range(12):
        rows = pairs.rows(image * multiplicity, (image + 1) * multiplicity, "cpu")
        loss = denoising_loss(unet, scheduler, rows).mean()
        flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(parameters.values()))])
        norm = flat.norm().item()
        factors = {"automatic": bound / (norm + 0.01), "flat": min(1.0, bound / norm), "none": 1.0}
        total = total + flat * factors[clipping]
    return total / 6.0


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize(("kind", "multiplicity"), [("lora", 1), ("lora", 3), ("full", 1), ("weights", 3)])
def test_equals_the_one_image_loop(clipping, kind, multiplicity):
    options = {"clipping": clipping, "kind": kind, "multiplicity": multiplicity, "bound": 0.05}
    computed, _ = gradient(**options)
    torch.testing.assert_close(computed, oracle(**options), rtol=1e-3, atol=2e-6)  # fp32 gradients of a whole UNet


@pytest.mark.parametrize("multiplicity", [1, 2])
@pytest.mark.parametrize("kind", ["rslora", "dora", "loha", "lokr", "ffa-lora", "attention"])
def test_every_adapter_equals_the_one_image_loop(kind, multiplicity):
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": 1e-3}
    computed, _ = gradient(micro_batch=5, **options)
    torch.testing.assert_close(computed, oracle(**options), rtol=1e-3, atol=2e-6)  # fp32 gradients of a whole UNet
    assert not torch.allclose(computed, oracle(**(options | {"clipping": "none"})), rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize("kind", ["lora", "ffa-lora"])
def test_adapters_on_convolutions_equal_the_one_image_loop(kind):
    options = {"clipping": "flat", "kind": kind, "bound": 0.05, "modules": ["conv_in", "down_blocks.0.resnets.0.conv1"]}
    torch.testing.assert_close(gradient(**options)[0], oracle(**options), rtol=1e-3, atol=2e-6)  # fp32 gradients


def test_clipping_each_pair_instead_of_each_image_would_differ():
    computed, _ = gradient(multiplicity=3, clipping="flat", bound=0.01)
    assert not torch.allclose(computed, oracle(multiplicity=1, clipping="flat", bound=0.01), rtol=1e-2)


@pytest.mark.parametrize("micro_batch", [1, 5, 7])
def test_micro_batch_does_not_change_the_gradient(micro_batch):
    torch.testing.assert_close(gradient(micro_batch=micro_batch)[0], gradient()[0], rtol=1e-3, atol=1e-6)  # fp32 sums


def test_noise_is_added_once_whatever_the_micro_batch():
    small, large = gradient(sigma=3.0, micro_batch=1)[0], gradient(sigma=3.0)[0]
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)  # same noise, fp32 sums


def test_noise_scale_is_sigma_times_bound_over_the_expected_batch():
    noisy, clean = gradient(sigma=2.0, bound=0.5)[0], gradient(bound=0.5)[0]
    scale = (noisy - clean).std().item()
    assert scale == pytest.approx(2.0 * 0.5 / 6.0, rel=5 / math.sqrt(2 * len(noisy)))  # five standard errors


def test_without_a_guarantee_nothing_is_clipped_or_noised():
    unet, parameters = prepared()
    per_image, scheduler = per_image_gradients(unet, parameters, "lora"), tiny_scheduler()
    pairs = draw_pairs(tiny_latents(), BATCH, 1, 1000, torch_generator(0, "pairs"))
    exact = Release(name="dp-sgd", mechanism="none", sensitivity=None, sampling_rate=0.5, steps=3)
    settings = {"multiplicity": 1, "clipping": "none", "expected_batch": 6.0, "micro_batch": 5, "device": "cpu", "noise": None}
    loss = lambda rows: denoising_loss(per_image.model, scheduler, rows)  # noqa: E731 - one use
    private_gradient(loss, per_image, list(parameters.values()), pairs, exact, **settings)
    computed = torch.cat([parameter.grad.flatten() for parameter in parameters.values()])
    torch.testing.assert_close(computed, oracle(clipping="none"), rtol=1e-3, atol=2e-6)  # plain training's gradient


def test_an_empty_batch_still_gets_noise():
    empty, report = gradient(sigma=2.0, batch=torch.tensor([], dtype=torch.int64))
    assert empty.abs().min() > 0 and report.images == 0 and math.isnan(report.loss)


def test_equals_opacus_own_optimizer_without_noise():
    """Opacus' DPOptimizer, flat clipping, as a second oracle."""
    from opacus.optimizers import DPOptimizer

    unet, parameters = prepared()
    model, scheduler = GradSampleModule(unet, loss_reduction="sum", strict=False), tiny_scheduler()
    optimizer = DPOptimizer(
        torch.optim.SGD(list(parameters.values()), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.05,
        expected_batch_size=6,
        loss_reduction="mean",
    )
    pairs = draw_pairs(tiny_latents(), BATCH, 1, 1000, torch_generator(0, "pairs"))
    denoising_loss(model, scheduler, pairs.rows(0, 12, "cpu")).sum().backward()
    before = copy.deepcopy([parameter.detach() for parameter in parameters.values()])
    optimizer.step()
    step = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, parameters.values(), strict=True)])
    torch.testing.assert_close(gradient(bound=0.05, clipping="flat")[0], step, rtol=1e-3, atol=2e-6)  # its norm has + 1e-6


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_the_sum_is_at_most_one_bound_per_image(clipping):
    computed = gradient(bound=0.3, clipping=clipping)[0]
    assert 0 < computed.norm() * 6.0 <= 12 * 0.3 * (1 + 1e-4)  # fp32 rounding
