import copy
import functools
import math
import typing

import pandas as pd
import pytest
import torch
from opacus.grad_sample import GradSampleModule

from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.methods import Adapter
from dpsapf.experiment.records import Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.per_image import per_image_gradients
from dpsapf.privacy.noise import SeededNoise
from dpsapf.public_models.latents import denoising_loss, draw_pairs
from dpsapf.support.randomness import torch_generator
from tests.tiny import candidates, tiny_latents, tiny_scheduler, tiny_unet

BATCH = torch.arange(12)
ADAPTERS = typing.get_args(Adapter)
CONVOLUTIONS = ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv")
FEED_FORWARD = tuple(f"down_blocks.0.attentions.0.transformer_blocks.0.ff.net.{part}" for part in ("0.proj", "2"))
TOLERANCE = 1e-5  # relative, of the whole vector: fp32 sums in another order differ by 2e-6, wrong clipping by more than 1e-2


def release(sigma=1.0, bound=1.0):
    return Release(name="dp-sgd", noise_multiplier=sigma, sensitivity=bound, sampling_rate=0.5, steps=3)


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
    checkpointing=False,
):
    unet, parameters = prepared(kind, modules)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    per_image = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None)
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


@functools.cache
def row_gradients(kind="lora", multiplicity=1, modules=None):
    """One row at a time with plain autograd: flat gradients [12 images, K rows, P]."""
    unet, parameters = prepared(kind, modules)
    scheduler = tiny_scheduler()
    pairs = draw_pairs(tiny_latents(), BATCH, multiplicity, 1000, torch_generator(0, "pairs"))
    rows = []
    for row in range(len(pairs)):
        loss = denoising_loss(unet, scheduler, pairs.rows(row, row + 1, "cpu")).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(parameters.values()))]))
    return torch.stack(rows).unflatten(0, (-1, multiplicity))


def clipped_mean(gradients, bound, clipping):
    """Clip each of [B, P], sum, divide by the expected batch."""
    norms = gradients.norm(dim=1, keepdim=True)
    factors = {"automatic": bound / (norms + 0.01), "flat": (bound / norms).clamp(max=1), "none": 1.0, "always": bound / norms}
    return (gradients * factors[clipping]).sum(0) / 6.0


def oracle(multiplicity=1, bound=1.0, clipping="automatic", kind="lora", modules=None):
    """Average an image's rows, then clip, sum, divide."""
    return clipped_mean(row_gradients(kind, multiplicity, modules).mean(1), bound, clipping)


def median_norm(kind="lora", multiplicity=1, modules=None):
    """A bound that clips half of the images."""
    return row_gradients(kind, multiplicity, modules).mean(1).norm(dim=1).median().item()


def error(computed, expected):
    return ((computed - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", [*ADAPTERS, "weights", "attention", "full"])
def test_equals_the_one_image_loop(kind, multiplicity, clipping):
    bound = median_norm(kind, multiplicity)
    options = {"clipping": clipping, "kind": kind, "multiplicity": multiplicity, "bound": bound}
    assert error(gradient(micro_batch=5, **options)[0], oracle(**options)) < TOLERANCE


@pytest.mark.parametrize("kind", [*ADAPTERS, "weights", "full"])
def test_gradient_checkpointing_changes_nothing(kind, monkeypatch):
    """Blocks are called again in the backward pass: the counter proves that they are."""
    from diffusers.models.resnet import ResnetBlock2D

    calls, forward = [], ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", lambda self, *inputs: calls.append(1) or forward(self, *inputs))
    options = {"clipping": "flat", "kind": kind, "multiplicity": 3, "bound": median_norm(kind, 3)}
    calls.clear()
    plain, once = gradient(**options)[0], len(calls)
    calls.clear()
    recomputed = gradient(checkpointing=True, **options)[0]
    assert len(calls) > 1.5 * once
    assert error(recomputed, plain) < TOLERANCE and error(recomputed, oracle(**options)) < TOLERANCE


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize(
    ("kind", "modules"),
    [(kind, CONVOLUTIONS) for kind in ("lora", "rslora", "ffa-lora")]
    + [(kind, FEED_FORWARD) for kind in ("dora", "loha", "lokr")],
)
def test_other_layers_equal_the_one_image_loop(kind, modules, multiplicity):
    """Convolutions; and feed-forward layers, large enough for LoKr to make a product of its second factor."""
    bound = median_norm(kind, multiplicity, modules)
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": bound, "modules": modules}
    assert error(gradient(**options)[0], oracle(**options)) < TOLERANCE
    assert kind != "lokr" or any("lokr_w2_a" in name for name in prepared(kind, modules)[1])


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "weights"])
def test_wrong_clipping_would_differ(kind):
    """Perturbed twins of the oracle, for each kind of engine: the comparison above would see them."""
    bound = median_norm(kind, 3)
    options = {"clipping": "flat", "kind": kind, "multiplicity": 3, "bound": bound}
    computed, rows = gradient(**options)[0], row_gradients(kind, 3)
    twins = {
        "pairs clipped": clipped_mean(rows.flatten(0, 1) / 3, bound / 3, "flat"),
        "rows summed": clipped_mean(rows.sum(1), bound, "flat"),
        "not clipped": clipped_mean(rows.mean(1), bound, "none"),
        "short gradients stretched": clipped_mean(rows.mean(1), bound, "always"),
        "an image left out": clipped_mean(rows.mean(1)[1:], bound, "flat"),
    }
    assert {name: error(computed, twin) > 1000 * TOLERANCE for name, twin in twins.items()} == dict.fromkeys(twins, True)


@pytest.mark.parametrize("kind", [*ADAPTERS, "weights"])
def test_one_image_contributes_the_bound_and_no_more(kind):
    """Over all parameters together, and whatever the image: the sensitivity that the plan accounts for."""
    bound = 0.1 * median_norm(kind)
    for image in range(3):
        computed, _ = gradient(kind=kind, bound=bound, clipping="flat", batch=torch.tensor([image]))
        assert computed.norm().item() * 6.0 == pytest.approx(bound, rel=1e-5)  # fp32 norm


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
    bound = median_norm()
    model, scheduler = GradSampleModule(unet, loss_reduction="sum", strict=False), tiny_scheduler()
    optimizer = DPOptimizer(
        torch.optim.SGD(list(parameters.values()), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=6,
        loss_reduction="mean",
    )
    pairs = draw_pairs(tiny_latents(), BATCH, 1, 1000, torch_generator(0, "pairs"))
    denoising_loss(model, scheduler, pairs.rows(0, 12, "cpu")).sum().backward()
    before = copy.deepcopy([parameter.detach() for parameter in parameters.values()])
    optimizer.step()
    step = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, parameters.values(), strict=True)])
    assert error(gradient(bound=bound, clipping="flat")[0], step) < 1e-3  # Opacus adds 1e-6 to norms of 1e-2


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_the_sum_is_at_most_one_bound_per_image(clipping):
    bound = 0.1 * median_norm()
    computed = gradient(bound=bound, clipping=clipping)[0]
    assert 0 < computed.norm() * 6.0 <= 12 * bound * (1 + 1e-4)  # fp32 rounding
