import typing

import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import MATRIX, RANK, SELECTED
from dpsapf.experiment.methods import METHODS, Adapter
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune.adapters import load_weights, resting, trainable
from dpsapf.support.errors import UserError
from tests.tiny import candidates, tiny_unet

ADAPTERS = typing.get_args(Adapter)


def selection(names, selected):
    return pd.DataFrame({MATRIX: names, SELECTED: [name in selected for name in names]})


def prepared(method, adapter=None, chosen=slice(0, 4), seed=0, names=None):
    unet = tiny_unet()
    names = names or candidates(unet)
    run = RunSpec(dataset="d", public_model="m", method=method, adapter=adapter, seed=seed)
    return unet, trainable(unet, run, selection(names, names[chosen]), 2, 2.0), names


def output(unet):
    generator = torch.Generator().manual_seed(0)
    latents, prompts = (torch.randn(2, *shape, generator=generator) for shape in ((4, 4, 4), (3, 8)))
    with torch.no_grad():
        return unet.eval()(latents, torch.tensor([10, 500]), prompts, return_dict=False)[0]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_starts_as_no_change(adapter):
    unet, parameters, names = prepared("dp-lora", adapter)
    assert parameters and all(any(name.startswith(part) for part in names[:4]) for name in parameters)
    torch.testing.assert_close(output(unet), output(tiny_unet()), rtol=1e-5, atol=1e-6)  # DoRA divides by a norm it computes
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    assert not torch.allclose(output(unet), output(tiny_unet()), rtol=1e-3)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapters_start_depends_on_the_seed_alone(adapter):
    first, again, other = (prepared("dp-lora", adapter, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_exactly_the_selected_matrices_are_adapted(adapter):
    """Of more than 20: from there on peft shortens the names that it is given."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    unet, parameters, names = prepared("dp-lora", adapter, chosen=slice(7, None))
    adapted = {name for name, layer in unet.named_modules() if isinstance(layer, BaseTunerLayer)}
    assert len(adapted) > 20 and adapted == set(names[7:])
    assert list(parameters) == [name for name, value in unet.named_parameters() if value.requires_grad]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("method", ["dp-lora", "noisy"])
def test_trained_values_restore_the_model(adapter, method):
    """What is saved is what is trained; everything else is made again from the seed."""
    unet, parameters, _ = prepared(method, adapter)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    torch.manual_seed(1)  # whatever the global state
    again, fresh, _ = prepared(method, adapter)
    assert list(fresh) == list(parameters) and not torch.equal(output(again), output(unet))
    load_weights(fresh, {name: value.detach().clone() for name, value in parameters.items()})
    assert torch.equal(output(again), output(unet))


@pytest.mark.parametrize(
    ("adapter", "trained"),
    [
        ("lora", {"lora_A", "lora_B"}),
        ("dora", {"lora_A", "lora_B", "lora_magnitude_vector"}),
        ("loha", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        ("lokr", {"lokr_w1", "lokr_w2"}),  # w2 is too small here to be a product
    ],
)
def test_each_name_is_peft_s_own_adapter(adapter, trained):
    _, parameters, names = prepared("dp-lora", adapter, chosen=slice(0, 1))
    assert {name.removeprefix(names[0] + ".").split(".")[0] for name in parameters} == trained


def test_ffa_lora_trains_b_alone():
    _, parameters, _ = prepared("dp-lora", "ffa-lora")
    assert len(parameters) == 4 and all("lora_B" in name for name in parameters)


def test_rslora_scales_by_the_square_root_of_the_rank():
    scales = [prepared("dp-lora", adapter)[0].get_submodule(candidates(tiny_unet())[0]).scaling for adapter in ("lora", "rslora")]
    assert scales[0]["default"] == 1.0 and scales[1]["default"] == pytest.approx(2**0.5)


def test_each_matrix_has_its_own_rank_and_all_one_scale():
    unet = tiny_unet()
    names, own = candidates(unet), [3, 0, 1, 2, 0, 5]
    run = RunSpec(dataset="d", public_model="m", method="dp-sapf", adapter="lora", lora_rank="auto")
    table = selection(names, [name for name, rank in zip(names, own, strict=False) if rank])
    table[RANK] = own + [0] * (len(names) - len(own))
    parameters = trainable(unet, run, table, 2, 3.0)
    found = {name.split(".lora_A")[0]: len(value) for name, value in parameters.items() if "lora_A" in name}
    assert found == {name: rank for name, rank in zip(names, own, strict=False) if rank}
    assert {unet.get_submodule(name).scaling["default"] for name in found} == {1.5}


def test_a_and_b_take_turns():
    names = ["x.lora_A.default.weight", "x.lora_B.default.weight", "y.lora_A.default.weight", "y.lora_B.default.weight"]
    assert [resting(names, "la-lora", step) for step in range(3)] == [{0, 2}, {1, 3}, {0, 2}]
    assert resting(names, "lora", 0) == resting(names, None, 1) == frozenset()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dp-full", lambda name, names: True),
        ("dp-ldm", lambda name, names: ".attn1." in name or ".attn2." in name),
        ("no-lora", lambda name, names: name.removesuffix(".weight") in names),
        ("all-params", lambda name, names: name.removesuffix(".weight") in names),
    ],
)
def test_methods_that_train_weights(method, expected):
    unet, parameters, names = prepared(method)
    assert list(parameters) == [name for name, _ in unet.named_parameters() if expected(name, names[:4])]
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert torch.equal(output(unet), output(tiny_unet()))


def test_the_noisy_variant_randomises_what_was_not_selected():
    unet, _, names = prepared("noisy", "lora")
    public, again = tiny_unet(), prepared("noisy", "lora")[0]
    for name in names:
        weight, original = unet.get_submodule(name).weight, public.get_submodule(name).weight
        assert torch.equal(weight, original) == (name in names[:4])
        assert torch.equal(weight, again.get_submodule(name).weight)
    changed = torch.cat([unet.get_submodule(name).weight.flatten() for name in names[4:]])
    original = torch.cat([public.get_submodule(name).weight.flatten() for name in names[4:]])
    assert changed.std() == pytest.approx(original.std().item(), rel=0.1)  # thousands of draws


def test_bad_selections_and_adapters_are_refused():
    with pytest.raises(UserError, match="must name matrices"):
        prepared("dp-lora", "lora", names=["nowhere"])
    with pytest.raises(UserError, match="must name matrices"):
        prepared("dp-lora", "lora", chosen=slice(0, 0))
    with pytest.raises(ValueError, match="'lora', 'rslora'"):
        prepared("dp-lora", "ia3")


def test_weights_of_another_selection_are_refused():
    _, parameters, _ = prepared("dp-lora", "lora")
    _, others, _ = prepared("dp-lora", "lora", chosen=slice(2, 5))
    with pytest.raises(UserError, match="of different runs"):
        load_weights(parameters, dict(others))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.trains])
def test_every_method_trains_something(method):
    row = METHODS[method]
    assert prepared(method, "lora" if row.trained == "adapter" else None)[1]
