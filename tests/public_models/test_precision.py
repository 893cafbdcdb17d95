import copy

import pytest
import torch

from dpsapf.public_models.precision import in_precision
from tests.tiny import tiny_unet


def predicted(unet, return_dict=False):
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(shape, generator=generator) for shape in ((2, 4, 4, 4), (2, 3, 8)))
    latents, embeddings = inputs
    found = unet(latents, torch.tensor([10, 500]), embeddings, return_dict=return_dict)
    return found.sample if return_dict else found[0]


@pytest.mark.parametrize("return_dict", [True, False])
def test_bf16_rounds_passes_and_nothing_else(return_dict):
    exact, rounded = tiny_unet(), in_precision(tiny_unet(), "bf16")
    expected, found = predicted(exact, return_dict), predicted(rounded, return_dict)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)  # 8 bits, through a dozen layers
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    found.square().sum().backward()
    assert {parameter.grad.dtype for parameter in rounded.parameters() if parameter.grad is not None} == {torch.float32}


def test_fp32_changes_nothing():
    unet = tiny_unet()
    before = copy.deepcopy(unet)
    assert in_precision(unet, "fp32") is unet and torch.equal(predicted(unet), predicted(before))


def test_what_is_in_a_list_or_a_tuple_is_made_fp32():
    class Listing(torch.nn.Linear):
        def forward(self, inputs):
            return ([super().forward(inputs)],)

    found = in_precision(Listing(2, 2), "bf16")(torch.ones(1, 2))
    assert isinstance(found, tuple) and isinstance(found[0], list) and found[0][0].dtype == torch.float32


def test_layers_of_which_nothing_is_trained_are_kept_in_bf16():
    unet = tiny_unet().requires_grad_(False)
    trained = {"mid_block.attentions.0.norm.bias", "up_blocks.1.resnets.0.conv1.weight"}
    for name in trained:
        unet.get_parameter(name).requires_grad_(True)
    expected = predicted(unet)
    in_precision(unet, "bf16")
    left = {name for name, value in unet.named_parameters() if value.dtype == torch.float32}
    whole = {f"{name.rpartition('.')[0]}.{kind}" for name in trained for kind in ("weight", "bias")}
    assert left == whole | {"conv_in.weight", "conv_in.bias"} and unet.dtype == torch.float32
    torch.testing.assert_close(predicted(unet), expected, rtol=0.05, atol=0.02)  # as above


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
def test_a_normalisation_of_which_nothing_is_trained_stays_in_bf16(kind, monkeypatch):
    """Autocast on a GPU would make its results, and all that follows it, fp32 and so twice as large."""
    seen, right = set(), getattr(torch.nn.functional, kind)

    def watched(inputs, *given, **named):
        result = right(inputs, *given, **named)
        seen.add((inputs.dtype, result.dtype, torch.is_autocast_enabled("cpu")))
        return result

    monkeypatch.setattr(torch.nn.functional, kind, watched)
    predicted(in_precision(tiny_unet().requires_grad_(False), "bf16"))
    assert seen == {(torch.bfloat16, torch.bfloat16, False)}
    seen.clear()
    predicted(in_precision(tiny_unet(), "bf16"))
    assert {enabled for *_, enabled in seen} == {True}, "what is trained is left to autocast"


def test_adapters_stay_fp32_on_layers_in_bf16():
    from tests.one_image import ADAPTERS, prepared

    for adapter in ADAPTERS:
        unet, parameters = prepared(adapter)
        expected = predicted(unet)
        in_precision(unet, "bf16")
        assert {value.dtype for value in parameters.values()} == {torch.float32}
        assert unet.mid_block.resnets[0].conv1.weight.dtype == torch.bfloat16
        torch.testing.assert_close(predicted(unet), expected, rtol=0.05, atol=0.05)  # as above
