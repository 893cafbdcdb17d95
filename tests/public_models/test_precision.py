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
