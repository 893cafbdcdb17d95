import math

import pytest
import torch

from dpsapf.finetune import checkpoint
from dpsapf.finetune.checkpoint import TrainingState, restore
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.privacy.values import Private
from dpsapf.support.checkpoint import Checkpoint

NAMES = ("block.0.lora_A.default.weight", "block.0.lora_B.default.weight", "bias")


def save(path, state):
    Checkpoint(path, {}, 10).save(*checkpoint.contents(state))


def load(path, state):
    restore(state, *Checkpoint(path, {}, 10).load())


def fresh(average=True, seed=0, optimizer=torch.optim.AdamW):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 5), (4, 2), (3,))
    values = (torch.randn(shape, generator=generator) for shape in shapes)
    parameters = {name: torch.nn.Parameter(value) for name, value in zip(NAMES, values, strict=True)}
    copies = {name: value.detach().clone() for name, value in parameters.items()} if average else None
    return TrainingState(parameters, optimizer(parameters.values(), lr=0.1), copies, Meter(7))


def train(state, steps):
    """Steps whose gradients depend on the number of the step alone, as those of a run do."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for parameter in state.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()
        state.meter.batch(0.5, generator)
        state.meter.gaussian(Private([torch.zeros(5)]), 1.0, 1.0, SeededNoise(generator))
        state.step += 1
        state.seconds += 0.5
        state.log.append({"step": state.step, "loss": 1 / state.step})
        for name, value in (state.average or {}).items():
            value.lerp_(state.parameters[name].detach(), 0.3)
    return state


def contents(state):
    """Everything of a state, comparable."""
    moments = [state.optimizer.state[parameter] for parameter in state.parameters.values()]
    tensors = [*state.parameters.values(), *(state.average or {}).values(), *(row[key] for row in moments for key in sorted(row))]
    measured = dict(state.meter.measured(0.0)) | {"salt": None, "peak_memory_mb": None}
    return [torch.as_tensor(value).tolist() for value in tensors], state.step, state.log, state.seconds, measured


@pytest.fixture(autouse=True)
def _same_places(monkeypatch):
    """Look at the noise at the same places, which the meter draws at random."""
    monkeypatch.setattr("dpsapf.privacy.noise_seen.secrets.randbits", lambda bits: 0)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_going_on_equals_never_having_stopped(tmp_path, step, average):
    save(tmp_path / "c.safetensors", train(fresh(average), step))
    restored = fresh(average, seed=1)  # other initial values: all of them must be replaced
    load(tmp_path / "c.safetensors", restored)
    assert restored.step == step and (restored.average is None) != average
    assert contents(train(restored, 5 - step)) == contents(train(fresh(average), 5))  # bit-equal


@pytest.mark.parametrize("part", ["parameter/", "average/", "optimizer/exp_avg/", "optimizer/exp_avg_sq/", "optimizer/step/"])
def test_every_part_that_is_kept_matters(part):
    """A state with one kind of its tensors changed goes on to other weights or another average."""
    facts, tensors = checkpoint.contents(train(fresh(), 3))
    assert sum(name.startswith(part) for name in tensors) == 3
    restored = fresh()
    restore(restored, facts, {name: value + 1.0 if name.startswith(part) else value for name, value in tensors.items()})
    assert contents(train(restored, 2))[0] != contents(train(fresh(), 5))[0]


def test_the_optimizer_still_trains_the_same_parameters(tmp_path):
    """Values are copied into the parameters that the model has: new ones would train beside it."""
    save(tmp_path / "c.safetensors", train(fresh(), 2))
    state = fresh(seed=1)
    held = list(state.parameters.values())
    load(tmp_path / "c.safetensors", state)
    assert all(parameter is other for parameter, other in zip(held, state.parameters.values(), strict=True))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in held)
    before = [parameter.detach().clone() for parameter in held]
    train(state, 1)
    assert not any(torch.equal(parameter, other) for parameter, other in zip(held, before, strict=True))


def test_values_in_another_order_of_memory_are_kept(tmp_path):
    state, restored = fresh(), fresh(seed=1)
    state.average[NAMES[0]] = torch.arange(10.0).reshape(5, 2).T
    save(tmp_path / "c.safetensors", state)
    load(tmp_path / "c.safetensors", restored)
    assert contents(restored) == contents(state)


def test_the_log_survives_empty_batches(tmp_path):
    state = train(fresh(), 2)
    state.log[1]["loss"] = math.nan
    save(tmp_path / "c.safetensors", state)
    restored = fresh()
    load(tmp_path / "c.safetensors", restored)
    assert restored.log[0] == {"step": 1, "loss": 1.0} and math.isnan(restored.log[1]["loss"])
    assert restored.seconds == 1.0


class EightBitLike(torch.optim.SGD):
    """Keeps what bitsandbytes' AdamW8bit keeps: an integer counter, bytes, and a code book that all parameters share."""

    BOOK = torch.linspace(-1, 1, 8)

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                values = self.state[parameter]
                values["step"] = values.get("step", 0) + 1
                values["state1"] = torch.full((parameter.numel(),), values["step"], dtype=torch.uint8)
                values["qmap1"] = self.BOOK


def test_integer_counters_bytes_and_shared_code_books_keep_their_types(tmp_path):
    save(tmp_path / "c.safetensors", train(fresh(optimizer=EightBitLike), 3))
    restored = fresh(optimizer=EightBitLike)
    load(tmp_path / "c.safetensors", restored)
    for parameter in restored.parameters.values():
        values = restored.optimizer.state[parameter]
        assert type(values["step"]) is int and values["step"] == 3
        assert values["state1"].dtype == torch.uint8 and values["state1"].tolist() == [3] * parameter.numel()
        assert torch.equal(values["qmap1"], EightBitLike.BOOK)
    train(restored, 1)


def test_torchs_counters_stay_tensors(tmp_path):
    save(tmp_path / "c.safetensors", train(fresh(), 3))
    restored = fresh()
    load(tmp_path / "c.safetensors", restored)
    counters = [restored.optimizer.state[parameter]["step"] for parameter in restored.parameters.values()]
    assert [type(counter) for counter in counters] == [torch.Tensor] * 3 and [int(counter) for counter in counters] == [3] * 3


def test_transposed_parameters_are_restored(tmp_path):
    """safetensors refuses tensors that are not contiguous."""
    values = torch.arange(6.0).reshape(2, 3).T

    def state(start):
        parameters = {"w": torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))}
        return TrainingState(parameters, torch.optim.AdamW(parameters.values()), None, Meter(7))

    assert not state(values).parameters["w"].is_contiguous()
    save(tmp_path / "c.safetensors", state(values))
    restored = state(torch.zeros(2, 3).T)
    load(tmp_path / "c.safetensors", restored)
    assert torch.equal(restored.parameters["w"], values)
