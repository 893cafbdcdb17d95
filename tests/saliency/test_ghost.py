import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.saliency.ghost import GhostNorms, gram_is_cheaper, squared_norms


def oracle(module, inputs, weights):
    """Squared weight-gradient norm of each image: one backward pass per image."""
    norms = []
    for image in range(len(inputs)):
        module.zero_grad()
        (module(inputs[image : image + 1]) * weights[image : image + 1]).sum().backward()
        norms.append(module.weight.grad.square().sum())
    return torch.stack(norms)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 5),
    tokens=st.integers(0, 9),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_equals_the_batch_of_one_loop(images, tokens, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, tokens) if tokens else (images,)
    module = torch.nn.Linear(inputs, outputs)
    activations = torch.randn(*shape, inputs, generator=generator)
    gradients = torch.randn(*shape, outputs, generator=generator)
    torch.testing.assert_close(
        squared_norms(activations, gradients), oracle(module, activations, gradients), rtol=1e-4, atol=1e-5
    )  # fp32 sums in another order


def test_both_forms_agree_and_the_cheaper_is_chosen():
    generator = torch.Generator().manual_seed(0)
    a, g = torch.randn(3, 4, 50, generator=generator), torch.randn(3, 4, 60, generator=generator)
    product = (g.mT @ a).square().sum((1, 2))
    assert gram_is_cheaper(4, 50, 60) and not gram_is_cheaper(64, 8, 8)
    torch.testing.assert_close(squared_norms(a, g), product, rtol=1e-5, atol=1e-5)  # fp32 sums in another order


def test_a_wrong_formula_would_be_noticed():
    """The norm of the summed gradient is not the sum of token norms."""
    a, g = torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    wrong = (a.square().sum(2) * g.square().sum(2)).sum(1)
    assert squared_norms(a, g).item() == pytest.approx(36) and wrong.item() == pytest.approx(12)


def test_hooks_leave_with_the_context_and_frozen_weights_get_no_gradient():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).requires_grad_(False)
    inputs = torch.randn(5, 3, requires_grad=True)
    with GhostNorms(model, ["0", "1"]) as norms:
        model(inputs).square().sum().backward()
        assert norms.take().shape == (5, 2)
    assert model[0].weight.grad is None
    assert not model[0]._forward_hooks
