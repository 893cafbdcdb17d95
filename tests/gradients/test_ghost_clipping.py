from pathlib import Path

import pytest
import torch

import dpsapf
from dpsapf.gradients import ghost_clipping
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.ghost_norms import CHUNK_FLOATS, MATRIX_LAYERS
from dpsapf.privacy.clipping import MARGIN
from dpsapf.public_models.latents import draw_batch
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from tests.tiny import tiny_latents, tiny_objective, tiny_unet

IMAGES = 6
FEW = (
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "up_blocks.1.resnets.0.conv1.weight",
)
TRAINED = {"all": lambda name: True, "attention": lambda name: ".attn" in name, "few": lambda name: name in FEW}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(unet, selection):
    return {name: value for name, value in unet.named_parameters() if TRAINED[selection](name)}


def draws(multiplicity, broken=()):
    batch = draw_batch(tiny_latents(), torch.arange(IMAGES), multiplicity, 1000, torch_generator(0, "pairs"))
    pairs = batch.rows(0, len(batch), "cpu")
    for image in broken:
        pairs.latents[image * multiplicity] = float("nan")
    return pairs


def losses(unet, pairs, start, stop):
    return tiny_objective().loss(unet, pairs.rows(start, stop, "cpu"))


def image_gradients(selection, multiplicity):
    """One image at a time with plain autograd: [B] flat gradients of the mean of its K losses."""
    unet, pairs, gradients = tiny_unet(), draws(multiplicity), []
    parameters = list(trained(unet, selection).values())
    for start in range(0, len(pairs), multiplicity):
        loss = losses(unet, pairs, start, start + multiplicity).mean()
        gradients.append(flat(torch.autograd.grad(loss, parameters)))
    return torch.stack(gradients)


def clipped(gradients, bound, clipping):
    norms, bound = gradients.norm(dim=1, keepdim=True), bound * (1 - MARGIN)
    return (gradients * (bound / (norms + 0.01) if clipping == "automatic" else (bound / norms).clamp(max=1))).sum(0)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def ghost(selection, multiplicity=1, *, bound=1.0, clipping="flat", micro_batch=IMAGES, broken=()):
    """The summed chunks, and all norms."""
    unet, pairs = tiny_unet(), draws(multiplicity, broken)
    clipper = GhostClipping(unet, trained(unet, selection))
    total, norms, rows = 0, [], micro_batch * multiplicity
    for start in range(0, len(pairs), rows):
        sums, chunk = clipper.clipped_sum(losses(clipper.model, pairs, start, start + rows), bound, clipping, multiplicity)
        total = total + flat(sums)
        norms.append(chunk)
    assert all(parameter.grad is None for parameter in unet.parameters())
    return total, torch.cat(norms)


def median_norm(selection, multiplicity):
    return image_gradients(selection, multiplicity).norm(dim=1).median().item()


def check(selection, multiplicity, clipping, **options):
    gradients = image_gradients(selection, multiplicity)
    bound = gradients.norm(dim=1).median().item()
    total, norms = ghost(selection, multiplicity, bound=bound, clipping=clipping, **options)
    expected = clipped(gradients, bound, clipping)
    # fp32 passes of a whole UNet in another order, and what norms add for rounding; entries are compared to the largest one
    torch.testing.assert_close(total, expected, rtol=2e-4, atol=3e-5 * expected.abs().max().item())
    torch.testing.assert_close(norms, gradients.norm(dim=1), rtol=2e-4, atol=0)


@pytest.fixture(params=["smaller", "pairs", "own"])
def kept(request, monkeypatch):
    """What is kept of a matrix: the smaller, always inputs and output gradients, or always its images' gradients."""
    if request.param != "smaller":

        def chosen(self, layer, kind, *tensors):
            return request.param == "pairs" and kind == "weight" and isinstance(layer, MATRIX_LAYERS)

        monkeypatch.setattr(GhostClipping, "_pair_is_smaller", chosen)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("selection", TRAINED)
def test_equals_the_one_image_loop(selection, multiplicity, clipping):
    check(selection, multiplicity, clipping)


@pytest.mark.parametrize(("tokens", "pairs"), [(4, 1), (5, 1), (6, 0), (60, 0)])
@pytest.mark.parametrize("multiplicity", [1, 3])
def test_the_smaller_is_kept(tokens, pairs, multiplicity, monkeypatch):
    """A matrix of 10 x 12 numbers, or 22 for each token: images' gradients from 6 tokens on, of an image's rows together."""
    seen, right = [], ghost_clipping._sum
    monkeypatch.setattr(ghost_clipping, "_sum", lambda layer, kept, *given: seen.append(len(kept)) or right(layer, kept, *given))
    layer = torch.nn.Linear(10, 12)
    clipper = GhostClipping(layer, dict(layer.named_parameters()))
    rows = layer(torch.randn(6, tokens, 10)).square().flatten(1).sum(1)
    clipper.clipped_sum(rows, 1.0, "flat", multiplicity)
    assert seen == [1 + (pairs if multiplicity == 1 else tokens * multiplicity < 6), 1]


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_do_not_change_the_sum(micro_batch):
    check("all", 3, "flat", micro_batch=micro_batch)


def not_clipped(squared, bound, clipping):
    return torch.ones_like(squared)


def clipped_to_twice_the_bound(squared, bound, clipping):
    return FACTORS(squared, 2 * bound, clipping)


FACTORS = ghost_clipping.clip_factors


@pytest.mark.parametrize("wrong", [not_clipped, clipped_to_twice_the_bound])
def test_wrong_factors_are_noticed(wrong, monkeypatch):
    monkeypatch.setattr(ghost_clipping, "clip_factors", wrong)
    with pytest.raises(AssertionError, match="not close"):
        check("few", 3, "flat")


@pytest.mark.parametrize("name", ["squared_norms", "image_gradients", "_weighted_sum"])
def test_a_layer_that_is_scaled_wrongly_is_noticed(name, monkeypatch):
    right = getattr(ghost_clipping, name)
    monkeypatch.setattr(ghost_clipping, name, lambda *inputs, **named: 1.01 * right(*inputs, **named))
    with pytest.raises(AssertionError, match="not close"):
        check("all", 3, "flat")


def test_clipping_each_pair_instead_of_each_image_would_differ():
    bound = median_norm("few", 3)
    each_pair = ghost("few", 1, bound=bound)[0]
    assert not torch.allclose(ghost("few", 3, bound=bound)[0], each_pair, rtol=1e-2)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_the_norm_of_one_image_is_at_most_the_bound(clipping):
    bound = 0.1 * median_norm("all", 1)
    for image in range(IMAGES):
        others = [other for other in range(IMAGES) if other != image]
        assert ghost("all", bound=bound, clipping=clipping, broken=others)[0].double().norm() <= bound


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("multiplicity", [1, 3])
def test_a_broken_image_contributes_nothing(multiplicity):
    gradients, bound = image_gradients("all", multiplicity), median_norm("all", multiplicity)
    total, norms = ghost("all", multiplicity, bound=bound, broken=[2])
    expected = clipped(gradients[[0, 1, 3, 4, 5]], bound, "flat")
    assert norms[2].isnan() and norms[:2].isfinite().all()
    torch.testing.assert_close(total, expected, rtol=2e-4, atol=3e-5 * expected.abs().max().item())  # as in check


def test_only_broken_images_give_exactly_zero():
    assert not ghost("all", broken=range(IMAGES))[0].any()


def test_the_packaged_unet():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(Path(dpsapf.__file__).parent / "public_models" / "public-mini" / "unet")
    parameters, rows = dict(unet.named_parameters()), (torch.randn(3, 4, 8, 8), torch.tensor([9, 500, 90]), torch.randn(3, 8, 64))
    gradients = []
    for image in range(3):
        output = unet(*(part[image : image + 1] for part in rows), return_dict=False)[0]
        gradients.append(flat(torch.autograd.grad(output.square().mean(), list(parameters.values()))))
    clipper = GhostClipping(unet, parameters)
    row_losses = unet(*rows, return_dict=False)[0].square().flatten(1).mean(1)
    expected = clipped(torch.stack(gradients), 0.1, "flat")
    total = flat(clipper.clipped_sum(row_losses, 0.1, "flat")[0])
    torch.testing.assert_close(total, expected, rtol=2e-4, atol=3e-5 * expected.abs().max().item())  # as in check


@pytest.mark.parametrize("layer", [torch.nn.Linear(3, 5, bias=False), torch.nn.LayerNorm(3, bias=False)])
def test_layers_without_bias(layer):
    inputs = torch.randn(4, 2, 3)
    expected = [torch.autograd.grad(layer(row).square().sum(), layer.weight)[0] for row in inputs]
    clipper = GhostClipping(layer, {"weight": layer.weight})
    (total,), norms = clipper.clipped_sum(layer(inputs).square(), 1e9, "flat")
    torch.testing.assert_close(total, sum(expected), rtol=1e-5, atol=1e-5)  # fp32 sums in another order
    torch.testing.assert_close(norms, torch.stack([gradient.norm() for gradient in expected]), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("padding", ["same", (2, 1)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_strange_convolutions(padding, mode):
    layer = torch.nn.Conv2d(4, 6, (2, 3), padding=padding, dilation=(1, 2), groups=2, padding_mode=mode)
    inputs, parameters = torch.randn(4, 4, 6, 6), dict(layer.named_parameters())
    rows = [flat(torch.autograd.grad(layer(row[None]).square().sum(), list(parameters.values()))) for row in inputs]
    clipper = GhostClipping(layer, parameters)
    sums, norms = clipper.clipped_sum(layer(inputs).square(), 5.0, "flat")
    torch.testing.assert_close(flat(sums), clipped(torch.stack(rows), 5.0, "flat"), rtol=1e-4, atol=1e-4)  # fp32 sums
    torch.testing.assert_close(norms, torch.stack(rows).norm(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", [1, 2**24])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_product_of_patches(groups, numbers, monkeypatch):
    """What a GPU sums bf16 numbers by, with any chunks of rows."""
    monkeypatch.setitem(CHUNK_FLOATS, "cpu", numbers)
    layer = torch.nn.Conv2d(4, 6, (2, 3), padding=(2, 1), stride=(1, 2), dilation=(1, 2), groups=groups)
    inputs = torch.randn(5, 4, 6, 7)
    output = layer(inputs)
    factors = torch.randn(output.shape)
    (expected,) = torch.autograd.grad((output * factors).sum(), layer.weight)
    found = ghost_clipping._weighted_sum_of_patches(layer, inputs, factors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # fp32 sums


def test_sums_are_fp32_under_autocast():
    """The sums agree with the norms to fp32, not to the 8 bits of the activations."""
    layer = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Flatten(2), torch.nn.Linear(16, 8))
    clipper = GhostClipping(layer, dict(layer.named_parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        sums, norms = clipper.clipped_sum(layer(torch.randn(1, 4, 6, 6)).float().square(), 0.5, "flat")
    assert norms.item() > 0.5 and {total.dtype for total in sums} == {torch.float32}
    assert 0.5 * (1 - 1.05 * MARGIN) < flat(sums).double().norm().item() <= 0.5


def test_the_optimizer_updates_frozen_parameters():
    unet = tiny_unet()
    parameters = trained(unet, "few")
    clipper, optimizer = GhostClipping(unet, parameters), torch.optim.AdamW(parameters.values(), lr=0.1)
    before = flat(parameters.values()).detach().clone()
    sums, _ = clipper.clipped_sum(losses(clipper.model, draws(1), 0, IMAGES), 1.0, "automatic")
    for parameter, total in zip(parameters.values(), sums, strict=True):
        parameter.grad = total
    optimizer.step()
    assert (flat(parameters.values()) != before).float().mean() > 0.99


def test_close_removes_the_hooks():
    layer = torch.nn.Linear(3, 3)
    GhostClipping(layer, {"weight": layer.weight}).close()
    assert not layer._forward_hooks


@pytest.mark.parametrize("two_passes", [False, True])
def test_nothing_of_a_batch_is_kept(two_passes):
    layer = torch.nn.Linear(3, 3)
    engine = GhostClipping(layer, dict(layer.named_parameters()), two_passes=two_passes)
    engine.clipped_sum(engine.model(torch.randn(2, 3)).sum(1), 1.0, "flat", 1)
    assert not engine._computed


def model_of(kind):
    layers = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3), "e": torch.nn.Embedding(3, 3)})
    if kind == "shared":
        layers["b"].weight = layers["a"].weight
    if kind == "scale":
        layers["a"].scale = torch.nn.Parameter(torch.ones(3))
    return layers


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("shared", "a.weight", "'a.weight': is shared by two layers"),
        ("embedding", "e.weight", "'e'"),
        ("missing", "c.weight", "'c.weight': is not the weight or bias"),
        ("misnamed", "b.weight", "'b.weight': is not the weight or bias"),
        ("scale", "a.scale", "'a.scale': is not the weight or bias"),
    ],
)
def test_other_parameters_are_refused_by_name(kind, name, message):
    layers = model_of(kind)
    known = {} if kind == "misnamed" else dict(layers.named_parameters())
    parameter = known.get(name, layers["a"].weight)
    with pytest.raises(UserError, match=message):
        GhostClipping(layers, {name: parameter})


def test_all_parameters_may_rest():
    unet = tiny_unet()
    clipper = GhostClipping(unet, trained(unet, "few"))
    sums, norms = clipper.clipped_sum(losses(unet, draws(1), 0, IMAGES), 1.0, "flat", 1, frozenset(range(len(FEW))))
    assert not flat(sums).any() and not norms.any()


def with_tokens_that_cancel(size):
    """The sum over 21 images, of which one has two tokens with gradients of a size that cancel; with it, and without it."""
    layer, sums = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False), []
    clipper, gradients = GhostClipping(layer, dict(layer.named_parameters())), 10 * torch.randn(1, 8, 4, 4).repeat(21, 1, 1, 1)
    gradients[0] = 0
    gradients[0, :, 1, 1], gradients[0, :, 1, 2] = size, -size
    for there in (True, False):
        inputs = torch.full((21, 8, 4, 4), 0.1)
        inputs[0] *= 1 if there else float("nan")
        (total,), _ = clipper.clipped_sum((layer(inputs) * gradients).flatten(1).sum(1), 1.0, "flat")
        sums.append(total.double())
    return sums


@pytest.mark.parametrize("size", [1e5, 1e8, 1e10])
def test_tokens_that_cancel_do_not_round_away_what_others_add(size):
    """Added up one after the other, huge ones leave nothing of what was there before."""
    whole, without = with_tokens_that_cancel(size)
    assert (whole - without).norm() <= 1.0
