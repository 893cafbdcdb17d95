"""Each closed form against one autograd call a row, on one layer; `test_per_image` has them inside a model."""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from dpsapf.gradients.adapter_rows import CHUNK_FLOATS, adapter_layers, adapter_rows, check_base
from dpsapf.support.errors import UserError

CONFIGS = {
    "dora": lambda names: LoraConfig(r=2, lora_alpha=3.0, use_dora=True, target_modules=names),
    "loha": lambda names: LoHaConfig(r=2, alpha=3.0, target_modules=names),
    "lokr": lambda names: LoKrConfig(r=2, alpha=3.0, target_modules=names),
    "lokr of products": lambda names: LoKrConfig(r=1, alpha=3.0, decompose_both=True, target_modules=names),
}
BASES = {
    "linear": (lambda: torch.nn.Linear(6, 8), (4, 5, 6)),
    "convolution": (lambda: torch.nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 4, 7, 5)),
}


def adapted(kind, base):
    """A layer with an adapter whose parameters are all random, so that no gradient vanishes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(torch.nn.Sequential(BASES[base][0]()), CONFIGS[kind](["0"]))
        (layer,) = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
        values = {name: value for name, value in layer.named_parameters() if value.requires_grad}
        for value in values.values():
            torch.nn.init.uniform_(value, 0.2, 1.0)
        return layer, values, torch.randn(BASES[base][1])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_are_those_of_autograd(kind, base):
    layer, values, inputs = adapted(kind, base)
    outputs = layer(inputs)
    gradients = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    rows = adapter_rows(layer, inputs, gradients)
    assert set(rows) == set(values)
    for row in range(len(inputs)):
        loss = (layer(inputs[row : row + 1]) * gradients[row]).sum()
        for name, expected in zip(values, torch.autograd.grad(loss, list(values.values())), strict=True):
            torch.testing.assert_close(rows[name][row], expected, rtol=1e-4, atol=1e-4, msg=f"{name}, row {row}")


def test_chunks_of_rows_do_not_change_them(monkeypatch):
    layer, _, inputs = adapted("loha", "convolution")
    gradients = torch.randn(layer(inputs).shape)
    expected = adapter_rows(layer, inputs, gradients)
    monkeypatch.setitem(CHUNK_FLOATS, "cpu", 1)
    torch.testing.assert_close(adapter_rows(layer, inputs, gradients), expected)


def test_lora_and_other_layers_have_no_form_here():
    assert {kind.__module__.split(".")[2] for kind in adapter_layers()} == {"lora", "loha", "lokr"}
    assert torch.nn.Linear not in adapter_layers()


@pytest.mark.parametrize("setting", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect", "padding": 1}])
def test_a_convolution_that_is_not_linear_in_plain_patches_is_refused(setting):
    model = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, **setting)), CONFIGS["loha"](["0"]))
    (layer,) = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    with pytest.raises(UserError, match=f"module = 'down': has {next(iter(setting))}"):
        check_base("down", layer)


@pytest.mark.parametrize("base", [torch.nn.Linear(4, 3), torch.nn.Conv2d(4, 3, 3, stride=2, padding=1)])
def test_plain_layers_are_not_refused(base):
    layer = type("Layer", (), {"get_base_layer": lambda self: base})()
    assert check_base("plain", layer) is None
