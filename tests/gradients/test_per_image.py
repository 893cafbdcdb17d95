import functools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.bench.compare import OpacusGradients, _peak_mb
from dpsapf.gradients import adapter_rows
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.per_image import WITHOUT_LAYERS, AdapterGradients, averaged, per_image_gradients
from dpsapf.privacy.clipping import MARGIN
from dpsapf.support.errors import UserError
from tests.one_image import (
    ADAPTERS,
    TOLERANCE,
    clipped_sum,
    drawn,
    error,
    flat,
    median_norm,
    oracle,
    prepared,
    row_gradients,
)
from tests.tiny import tiny_objective

CONVOLUTIONS = ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv")
FEED_FORWARD = tuple(f"down_blocks.0.attentions.0.transformer_blocks.0.ff.net.{part}" for part in ("0.proj", "2"))
LAYERED = tuple(adapter for adapter in ADAPTERS if adapter not in WITHOUT_LAYERS)


def opacus(unet, parameters, adapter):
    return OpacusGradients(unet, parameters)


def built(kind="lora", modules=None, make=per_image_gradients):
    unet, parameters = prepared(kind, modules)
    return make(unet, parameters, kind if kind in ADAPTERS else None)


def checkpointed(unet, parameters, adapter):
    unet.enable_gradient_checkpointing()
    return per_image_gradients(unet, parameters, adapter)


def passed(engine, pairs, bound, clipping="flat", multiplicity=1):
    """One forward and backward pass, then the flat sum and the norms."""
    losses = tiny_objective().loss(engine.model, pairs)
    sums, norms = engine.clipped_sum(losses, bound, clipping, multiplicity)
    return flat(sums), norms


def computed(kind="lora", *, multiplicity=1, bound=1.0, clipping="flat", modules=None, make=per_image_gradients):
    return passed(built(kind, modules, make), drawn(multiplicity), bound, clipping, multiplicity)


@pytest.mark.parametrize("kind", [*ADAPTERS, None])
def test_ghost_clipping_wherever_parameters_sit_in_layers(kind):
    engine = built(kind or "weights")
    assert type(engine) is (AdapterGradients if kind in ("dora", "loha", "lokr") else GhostClipping)


@pytest.mark.parametrize(("multiplicity", "clipping"), [(1, "automatic"), (3, "flat")])
@pytest.mark.parametrize("kind", [*ADAPTERS, "weights", "attention", "full"])
def test_sums_and_norms_equal_the_one_image_loop(kind, multiplicity, clipping):
    options = {"clipping": clipping, "kind": kind, "multiplicity": multiplicity, "bound": median_norm(kind, multiplicity)}
    total, norms = computed(**options)
    assert error(total, oracle(**options)) < TOLERANCE
    assert error(norms, row_gradients(kind, multiplicity).mean(1).norm(dim=1)) < TOLERANCE


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", [*LAYERED, "weights"])
def test_opacus_per_sample_gradients_agree(kind, multiplicity):
    """A second oracle, which shares no code with ghost clipping."""
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": median_norm(kind, multiplicity)}
    ours, theirs = computed(**options), computed(make=opacus, **options)
    assert error(ours[0], theirs[0]) < TOLERANCE and error(ours[1], theirs[1]) < TOLERANCE
    halved = computed(make=opacus, **(options | {"bound": options["bound"] / 2}))
    assert error(ours[0], halved[0]) > 1000 * TOLERANCE  # the comparison would see another bound


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", [*ADAPTERS, "weights", "attention", "full"])
def test_gradient_checkpointing_changes_nothing(kind, multiplicity, monkeypatch):
    """Blocks are called again in each backward pass, of which trained weights have two: the counter proves that they are."""
    from diffusers.models.resnet import ResnetBlock2D

    calls, forward = [], ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", lambda self, *inputs: calls.append(1) or forward(self, *inputs))
    bound = median_norm(kind, multiplicity)
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": bound}
    calls.clear()
    plain, once = computed(**options), len(calls)
    calls.clear()
    recomputed = computed(make=checkpointed, **options)
    assert len(calls) > (1.5 if kind in ADAPTERS else 2) * once and len(calls) < (2.1 if kind in ADAPTERS else 3.1) * once
    assert all(torch.equal(*pair) for pair in zip(recomputed, plain, strict=True))  # from the same numbers in the same order
    assert error(recomputed[0], oracle(**options)) < TOLERANCE


def deep_unet():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    widths = {"block_out_channels": (8,), "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4}
    return UNet2DConditionModel(sample_size=8, layers_per_block=6, **blocks, **widths).train()


def test_gradient_checkpointing_saves_memory_for_trained_weights():
    """Peak of everything that a pass allocates: what autograd saves, and what hooks keep."""
    rows, peaks = (torch.randn(16, 4, 8, 8), torch.arange(16), torch.randn(16, 3, 8)), {}
    for make in (per_image_gradients, checkpointed):
        unet = deep_unet()
        engine = make(unet, dict(unet.named_parameters()), None)

        def step(engine=engine):
            losses = engine.model(*rows, return_dict=False)[0].square().flatten(1).mean(1)
            engine.clipped_sum(losses, 1.0, "flat")

        peaks[make] = _peak_mb(step, "cpu")
    assert peaks[checkpointed] < peaks[per_image_gradients] / 3


@pytest.mark.parametrize(
    ("kind", "modules"), [(kind, CONVOLUTIONS) for kind in ADAPTERS] + [(kind, FEED_FORWARD) for kind in WITHOUT_LAYERS]
)
def test_other_layers_equal_the_one_image_loop(kind, modules, multiplicity=3):
    """Convolutions, one with a stride; and feed-forward layers, large enough for LoKr to make a product of its second factor."""
    bound = median_norm(kind, multiplicity, modules)
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": bound, "modules": modules}
    assert error(computed(**options)[0], oracle(**options)) < TOLERANCE
    assert kind != "lokr" or modules == CONVOLUTIONS or any("lokr_w2_a" in name for name in prepared(kind, modules)[1])


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "weights"])
def test_wrong_clipping_would_differ(kind):
    """Perturbed twins of the oracle, for each kind of engine: the comparison above would see them."""
    bound = median_norm(kind, 3)
    total, rows = computed(kind, multiplicity=3, bound=bound)[0], row_gradients(kind, 3)
    twins = {
        "pairs clipped": clipped_sum(rows.flatten(0, 1) / 3, bound / 3, "flat"),
        "rows summed": clipped_sum(rows.sum(1), bound, "flat"),
        "not clipped": clipped_sum(rows.mean(1), bound, "none"),
        "short gradients stretched": clipped_sum(rows.mean(1), bound, "always"),
        "an image left out": clipped_sum(rows.mean(1)[1:], bound, "flat"),
    }
    assert {name: error(total, twin) > 1000 * TOLERANCE for name, twin in twins.items()} == dict.fromkeys(twins, True)


@pytest.mark.parametrize("kind", [*ADAPTERS, "weights"])
def test_one_image_contributes_the_bound_and_no_more(kind):
    """Over all parameters together, and whatever the image: the sensitivity that the plan accounts for."""
    bound, engine = 0.1 * median_norm(kind), built(kind)
    for image in range(3):
        total, _ = passed(engine, drawn().rows(image, image + 1, "cpu"), bound)
        assert bound * (1 - 1.05 * MARGIN) < total.double().norm().item() <= bound


@pytest.mark.parametrize("make", [per_image_gradients, checkpointed], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["la-lora", "dora", "lokr", "full"])
def test_resting_parameters_count_for_nothing(kind, make):
    """In no norm and in no sum: what is left is clipped as if there were nothing else."""
    engine, parameters = built(kind, make=make), list(prepared(kind)[1].values())
    rows, sizes = row_gradients(kind, 3).mean(1).clone(), [parameter.numel() for parameter in parameters]
    resting = frozenset(range(0, len(sizes), 2))
    for position, part in enumerate(rows.split(sizes, dim=1)):
        part.mul_(position not in resting)
    bound = rows.norm(dim=1).median().item()
    sums, norms = engine.clipped_sum(tiny_objective().loss(engine.model, drawn(3)), bound, "flat", 3, resting)
    assert error(norms, rows.norm(dim=1)) < TOLERANCE and error(flat(sums), clipped_sum(rows, bound, "flat")) < TOLERANCE
    assert not any(sums[position].any() for position in resting)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_pass_forgets_the_one_before(kind):
    engine, pairs = built(kind), drawn()
    first, again = (passed(engine, pairs.rows(0, 5, "cpu"), 1.0) for _ in range(2))
    rest = passed(engine, pairs.rows(5, 12, "cpu"), 1.0)
    assert torch.equal(first[0], again[0]) and len(rest[1]) == 7
    assert error(first[0] + rest[0], oracle(kind=kind, clipping="flat")) < TOLERANCE  # chunks add up to the batch
    assert all(parameter.grad is None for parameter in engine.model.parameters())  # nothing that is not clipped is left


@pytest.mark.parametrize("make", [per_image_gradients, checkpointed], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "weights"])
def test_a_broken_image_contributes_nothing(kind, make):
    pairs, bound = drawn(3), median_norm(kind, 3)
    pairs.latents[3 * 4 + 1] = float("nan")  # one of image 4's rows
    total, norms = passed(built(kind, make=make), pairs, bound, multiplicity=3)
    rest = row_gradients(kind, 3).mean(1)[torch.arange(12) != 4]
    assert error(total, clipped_sum(rest, bound, "flat")) < TOLERANCE
    assert norms.isfinite().tolist() == [image != 4 for image in range(12)]


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_sums_are_fp32_and_within_the_bound_after_a_pass_in_bf16(kind):
    bound, engine = 0.1 * median_norm(kind), built(kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiny_objective().loss(engine.model, drawn().rows(0, 1, "cpu"))
    sums, norms = engine.clipped_sum(loss, bound, "flat")
    assert {total.dtype for total in sums} == {norms.dtype} == {torch.float32}
    assert bound * (1 - 1.05 * MARGIN) < flat(sums).double().norm().item() <= bound  # not to the 8 bits of the activations
    assert norms.item() == pytest.approx(row_gradients(kind)[0].norm().item(), rel=0.2)


def adapted(kind, *layers, **options):
    """Layers, each with an adapter that is moved off its start, and the adapters' parameters."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    configs = {"lora": LoraConfig, "dora": functools.partial(LoraConfig, use_dora=True), "loha": LoHaConfig, "lokr": LoKrConfig}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(*layers).requires_grad_(False)
        names = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
        inject_adapter_in_model(configs[kind](r=2, target_modules=names, **options), model)
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for parameter in parameters.values():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return model, parameters


def check_adapted(model, parameters, inputs, multiplicity=1):
    """Clipped sums against one backward pass per row."""
    rows = [flat(torch.autograd.grad(model(row[None]).square().sum(), list(parameters.values()))) for row in inputs]
    images = torch.stack(rows).unflatten(0, (-1, multiplicity)).mean(1)
    bound = images.norm(dim=1).median().item()
    engine = AdapterGradients(model, parameters)
    losses = engine.model(inputs).square().flatten(1).sum(1)
    total = flat(engine.clipped_sum(losses, bound, "flat", multiplicity)[0])
    assert error(total, clipped_sum(images, bound, "flat")) < TOLERANCE


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("tokens", [(), (4,), (2, 3)])
@pytest.mark.parametrize("kind", WITHOUT_LAYERS)
def test_linear_layers_of_any_number_of_tokens(kind, tokens, multiplicity):
    """Rows [B, *tokens, I] through layers with biases and of several shapes, one of them 1 wide."""
    layers = torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1)
    check_adapted(*adapted(kind, *layers), torch.randn(6, *tokens, 6), multiplicity)


@pytest.mark.parametrize("conv", [{}, {"stride": 2, "padding": (2, 1)}, {"padding": "same"}])
@pytest.mark.parametrize("kernel", [1, (2, 3), 3])
@pytest.mark.parametrize("kind", WITHOUT_LAYERS)
def test_strange_convolutions(kind, kernel, conv, monkeypatch):
    """Also with rows in chunks, which the size of their patches calls for."""
    model, parameters = adapted(kind, torch.nn.Conv2d(6, 4, kernel, **conv), torch.nn.Tanh(), torch.nn.Conv2d(4, 9, 1))
    inputs = torch.randn(5, 6, 7, 6)
    monkeypatch.setitem(adapter_rows.CHUNK_FLOATS, "cpu", 4000)
    check_adapted(model, parameters, inputs)


def test_lokr_with_a_product_for_its_first_factor():
    model, parameters = adapted("lokr", torch.nn.Linear(36, 64), decompose_both=True)
    assert any("lokr_w1_a" in name for name in parameters)
    check_adapted(model, parameters, torch.randn(5, 3, 36))


@pytest.mark.parametrize("setting", [{"groups": 2}, {"dilation": (1, 2)}, {"padding_mode": "circular"}])
def test_convolutions_without_a_closed_form_are_refused(setting):
    with pytest.raises(UserError, match=f"module = '0': has {next(iter(setting))}"):
        AdapterGradients(*adapted("loha", torch.nn.Conv2d(4, 4, 3, **setting)))


@pytest.mark.parametrize("kind", ["weights", "lora", *WITHOUT_LAYERS])
def test_a_module_that_is_called_twice_is_refused(kind):
    """In one forward pass: its parameters' gradient is a sum over both calls, and its norm is not that of either."""
    if kind == "weights":
        model = torch.nn.Sequential(torch.nn.Linear(3, 3))
        parameters = dict(model.named_parameters())
    else:
        model, parameters = adapted(kind, torch.nn.Linear(3, 3))
    engine = per_image_gradients(model, parameters, None if kind == "weights" else kind)
    losses = model(model(torch.randn(2, 3))).square().sum(1)
    with pytest.raises(UserError, match="module = '0.*is called twice"):
        engine.clipped_sum(losses, 1.0, "flat")


@settings(max_examples=25, deadline=None)
@given(images=st.integers(0, 5), multiplicity=st.integers(1, 4), seed=st.integers(0, 99))
def test_averaged_takes_the_adjacent_rows_of_each_image(images, multiplicity, seed):
    rows = torch.randn(images * multiplicity, 2, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
    means = averaged(rows, multiplicity)
    assert means.shape == (images, 2, 3) and means.dtype == torch.float32
    for image in range(images):
        own = rows[image * multiplicity : (image + 1) * multiplicity]
        torch.testing.assert_close(means[image], own.float().mean(0))


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_backward_pass_that_broke_off_leaves_nothing_behind(kind):
    """A GPU that cannot record a pass breaks it off; it is then done again."""
    unet, parameters = prepared(kind)
    engine = per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None)
    receive, left = engine._hooks._receive, [3]

    def breaks(*given):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("operation not permitted when stream is capturing")
        receive(*given)

    engine._hooks._receive = breaks
    with pytest.raises(RuntimeError, match="capturing"):
        passed(engine, drawn(), 1.0)
    again = passed(engine, drawn(), 1.0)
    unet, parameters = prepared(kind)
    expected = passed(per_image_gradients(unet, parameters, kind if kind in ADAPTERS else None), drawn(), 1.0)
    assert error(again[0], expected[0]) < TOLERANCE


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_layer_that_the_loss_does_not_depend_on_is_named(kind):
    engine = built(kind)
    name, layer = next(iter(engine._hooks.layers.items()))
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    losses = tiny_objective().loss(engine.model, drawn())
    with pytest.raises(UserError, match=re.escape(f"'{name}': got no gradient")):
        engine.clipped_sum(losses, 1.0, "flat")
