import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.bench.compare import OpacusGradients
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.per_image import FUNCTIONAL, FunctionalGradients, averaged, per_image_gradients
from dpsapf.public_models.latents import denoising_loss
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
from tests.tiny import tiny_scheduler

CONVOLUTIONS = ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv")
FEED_FORWARD = tuple(f"down_blocks.0.attentions.0.transformer_blocks.0.ff.net.{part}" for part in ("0.proj", "2"))
LAYERED = tuple(adapter for adapter in ADAPTERS if adapter not in FUNCTIONAL)


def opacus(unet, parameters, adapter):
    return OpacusGradients(unet, parameters)


def built(kind="lora", modules=None, make=per_image_gradients):
    unet, parameters = prepared(kind, modules)
    return make(unet, parameters, kind if kind in ADAPTERS else None)


def passed(engine, pairs, bound, clipping="flat", multiplicity=1):
    """One forward and backward pass, then the flat sum and the norms."""
    denoising_loss(engine.model, tiny_scheduler(), pairs).sum().backward()
    sums, norms = engine.clipped_sum(bound, clipping, multiplicity)
    return flat(sums), norms


def computed(kind="lora", *, multiplicity=1, bound=1.0, clipping="flat", modules=None, make=per_image_gradients):
    return passed(built(kind, modules, make), drawn(multiplicity), bound, clipping, multiplicity)


@pytest.mark.parametrize("kind", [*ADAPTERS, None])
def test_ghost_clipping_wherever_parameters_sit_in_layers(kind):
    engine = built(kind or "weights")
    assert type(engine) is (FunctionalGradients if kind in ("dora", "loha", "lokr") else GhostClipping)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("multiplicity", [1, 3])
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


@pytest.mark.parametrize("kind", [*ADAPTERS, "weights", "full"])
def test_gradient_checkpointing_changes_nothing(kind, monkeypatch):
    """Blocks are called again in the backward pass: the counter proves that they are."""
    from diffusers.models.resnet import ResnetBlock2D

    calls, forward = [], ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", lambda self, *inputs: calls.append(1) or forward(self, *inputs))
    options = {"clipping": "flat", "kind": kind, "multiplicity": 3, "bound": median_norm(kind, 3)}
    calls.clear()
    plain, once = computed(**options)[0], len(calls)
    calls.clear()

    def checkpointed(unet, parameters, adapter):
        unet.enable_gradient_checkpointing()
        return per_image_gradients(unet, parameters, adapter)

    recomputed = computed(make=checkpointed, **options)[0]
    assert len(calls) > 1.5 * once
    assert error(recomputed, plain) < TOLERANCE and error(recomputed, oracle(**options)) < TOLERANCE


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize(
    ("kind", "modules"), [(kind, CONVOLUTIONS) for kind in LAYERED] + [(kind, FEED_FORWARD) for kind in FUNCTIONAL]
)
def test_other_layers_equal_the_one_image_loop(kind, modules, multiplicity):
    """Convolutions; and feed-forward layers, large enough for LoKr to make a product of its second factor."""
    bound = median_norm(kind, multiplicity, modules)
    options = {"clipping": "flat", "kind": kind, "multiplicity": multiplicity, "bound": bound, "modules": modules}
    assert error(computed(**options)[0], oracle(**options)) < TOLERANCE
    assert kind != "lokr" or any("lokr_w2_a" in name for name in prepared(kind, modules)[1])


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
        assert total.norm().item() == pytest.approx(bound, rel=1e-5)  # fp32 norm


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_pass_forgets_the_one_before(kind):
    engine, pairs = built(kind), drawn()
    first, again = (passed(engine, pairs.rows(0, 5, "cpu"), 1.0) for _ in range(2))
    rest = passed(engine, pairs.rows(5, 12, "cpu"), 1.0)
    assert torch.equal(first[0], again[0]) and len(rest[1]) == 7
    assert error(first[0] + rest[0], oracle(kind=kind, clipping="flat")) < TOLERANCE  # chunks add up to the batch
    assert all(parameter.grad is None for parameter in engine.model.parameters())  # nothing that is not clipped is left


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "weights"])
def test_a_broken_image_contributes_nothing(kind):
    pairs, bound = drawn(3), median_norm(kind, 3)
    pairs.latents[3 * 4 + 1] = float("nan")  # one of image 4's rows
    total, norms = passed(built(kind), pairs, bound, multiplicity=3)
    rest = row_gradients(kind, 3).mean(1)[torch.arange(12) != 4]
    assert error(total, clipped_sum(rest, bound, "flat")) < TOLERANCE
    assert norms.isfinite().tolist() == [image != 4 for image in range(12)]


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_sums_are_fp32_and_within_the_bound_after_a_pass_in_bf16(kind):
    bound, engine = 0.1 * median_norm(kind), built(kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = denoising_loss(engine.model, tiny_scheduler(), drawn().rows(0, 1, "cpu"))
    loss.sum().backward()
    sums, norms = engine.clipped_sum(bound, "flat")
    assert {total.dtype for total in sums} == {norms.dtype} == {torch.float32}
    assert flat(sums).norm().item() == pytest.approx(bound, rel=1e-5)  # not to the 8 bits of the activations
    assert norms.item() == pytest.approx(row_gradients(kind)[0].norm().item(), rel=0.2)


@pytest.mark.parametrize("tokens", [(), (4,), (2, 3)])
@pytest.mark.parametrize("kind", FUNCTIONAL)
def test_linear_layers_of_any_number_of_tokens(kind, tokens):
    """Rows [B, *tokens, I] through a layer with a bias, against one image at a time."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    configs = {"dora": lambda **keys: LoraConfig(use_dora=True, **keys), "loha": LoHaConfig, "lokr": LoKrConfig}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).requires_grad_(False)
        inject_adapter_in_model(configs[kind](r=2, target_modules=["0", "2"]), model)
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        inputs = torch.randn(5, *tokens, 6)
        for parameter in parameters.values():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    rows = [flat(torch.autograd.grad(model(row[None]).square().sum(), list(parameters.values()))) for row in inputs]
    bound = torch.stack(rows).norm(dim=1).median().item()
    engine = FunctionalGradients(model, parameters)
    engine.model(inputs).square().sum().backward()
    assert error(flat(engine.clipped_sum(bound, "flat")[0]), clipped_sum(torch.stack(rows), bound, "flat")) < TOLERANCE


@settings(max_examples=25, deadline=None)
@given(images=st.integers(0, 5), multiplicity=st.integers(1, 4), seed=st.integers(0, 99))
def test_averaged_takes_the_adjacent_rows_of_each_image(images, multiplicity, seed):
    rows = torch.randn(images * multiplicity, 2, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
    means = averaged(rows, multiplicity)
    assert means.shape == (images, 2, 3) and means.dtype == torch.float32
    for image in range(images):
        own = rows[image * multiplicity : (image + 1) * multiplicity]
        torch.testing.assert_close(means[image], own.float().mean(0))
