"""How recordings are kept and used, with a stand-in for CUDA's graph; `contracts/test_gpu.py` has the real one."""

import functools

import pytest
import torch

from dpsapf.support import replay
from dpsapf.support.replay import RECORDINGS, Replay, replayed, without_replay


class Graph:
    """Does the work again when it is replayed, on the same places."""

    def __init__(self, work, places, outputs):
        self.again = functools.partial(work, *places)
        self.outputs = outputs

    def replay(self):
        for place, value in zip(self.outputs, self.again(), strict=True):
            place.copy_(value)


def recorded(work, inputs):
    places = tuple(part.clone() for part in inputs)
    outputs = work(*places)
    return replay._Recording(Graph(work, places, outputs), places, outputs)


@pytest.fixture
def graphs(monkeypatch):
    """A stand-in for recording, and the inputs that it was called with."""
    made = []

    def record(work, inputs):
        made.append(inputs)
        return recorded(work, inputs)

    monkeypatch.setattr(replay, "_recorded", record)
    return made


def doubled(values):
    return (2 * values,)


def numbers(*values):
    return (torch.tensor([float(value) for value in values]),)


def test_on_a_cpu_work_is_called(graphs):
    replays = Replay("cpu")
    assert [replays(doubled, numbers(value))[0].item() for value in range(4)] == [0, 2, 4, 6]
    assert not graphs and not replays.records


def test_it_is_recorded_the_second_time_and_then_replayed_on_what_is_given(graphs):
    replays, found = Replay("cuda"), []
    for value in range(5):
        (result,) = replays(doubled, numbers(value))
        found.append((result.item(), len(graphs), result))
    assert [(number, count) for number, count, _ in found] == [(0, 0), (2, 1), (4, 1), (6, 1), (8, 1)]
    assert found[1][2] is found[4][2] is not found[0][2], "the place of the results is one"


def test_a_recording_follows_what_tensors_hold(graphs):
    weight, replays, results = torch.ones(1), Replay("cuda"), []

    def weighted(values):
        return (weight * values,)

    for _ in range(4):
        results.append(replays(weighted, numbers(3))[0].item())
        weight.add_(1)
    assert results == [3, 6, 9, 12]


@pytest.mark.parametrize("change", ["kind", "shape", "dtype"])
def test_what_differs_is_recorded_apart(graphs, change):
    replays = Replay("cuda")
    for round_number in range(3):
        for other in (False, True):
            values = numbers(*[round_number] * (2 if other and change == "shape" else 1))
            if other and change == "dtype":
                values = (values[0].double(),)
            kind, factor = ("b", 3) if other and change == "kind" else ("a", 2)
            (result,) = replays(lambda part, factor=factor: (factor * part,), values, kind)
            assert torch.equal(result, factor * values[0])
    assert len(graphs) == 2


def test_a_kind_has_so_many_recordings_and_no_more(graphs):
    replays = Replay("cuda")
    for size in range(1, RECORDINGS + 3):
        for value in range(3):
            (result,) = replays(doubled, numbers(*[value] * size))
            assert result.tolist() == [2 * value] * size
    assert [len(inputs[0]) for inputs in graphs] == list(range(1, RECORDINGS + 1))


@pytest.mark.parametrize("error", [RuntimeError("not permitted when stream is capturing"), torch.OutOfMemoryError("no memory")])
def test_what_cannot_be_recorded_is_called_and_said_once(monkeypatch, caplog, error):
    def fails(work, inputs):
        if len(inputs[0]) > 1:
            raise error
        return recorded(work, inputs)

    monkeypatch.setattr(replay, "_recorded", fails)
    replays = Replay("cuda")
    for value in range(3):
        replays(doubled, numbers(value))
    assert replays._recordings[()]
    assert [replays(doubled, numbers(value, 1))[0][0].item() for value in range(4)] == [0, 2, 4, 6]
    assert [record.getMessage() for record in caplog.records] == [f"not recorded as a CUDA graph, which only costs time: {error}"]
    assert not replays.records and not replays._recordings, "and what was recorded keeps no memory"
    assert replays(doubled, numbers(5))[0].item() == 10


def test_nothing_is_recorded_or_replayed_while_launches_are_counted(graphs):
    replays, calls = Replay("cuda"), []

    def counted(values):
        calls.append(values)
        return doubled(values)

    with without_replay():
        for value in range(3):
            replays(counted, numbers(value))
    assert len(calls) == 3 and not graphs
    for value in range(3):
        replays(counted, numbers(value))
    assert len(graphs) == 1


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, values, factor=None, *, shift=None, texts=(), return_dict=True):
        self.calls.append(return_dict)
        result = values * (1 if factor is None else factor) + sum(texts) + (0 if shift is None else shift)
        return {"sample": result} if return_dict else (result,)


def test_a_replayed_model_is_called_as_before_and_gives_tensors_of_its_own(graphs):
    model = replayed(Model(), "cuda")
    found = []
    with torch.no_grad():
        for value in range(4):
            (values,), (text,) = numbers(value), numbers(10 * value)
            found.append(model(values, 2.0, shift=torch.tensor(1.0), texts=[text, text], return_dict=False)[0])
    assert [result.item() for result in found] == [1, 23, 45, 67]
    assert len({result.data_ptr() for result in found}) == 4 and len(graphs) == 1


def test_other_arguments_are_another_kind(graphs):
    model = replayed(Model(), "cuda")
    with torch.no_grad():
        for value in range(3):
            for factor in (2.0, 3.0):
                assert model(*numbers(value), factor, return_dict=False)[0].item() == factor * value
    assert len(graphs) == 2


def test_calls_with_a_gradient_or_a_dictionary_are_not_replayed(graphs):
    model = replayed(Model(), "cuda")
    for _ in range(3):
        assert model(*numbers(1), return_dict=False)[0].item() == 1
        with torch.no_grad():
            assert model(*numbers(1))["sample"].item() == 1
    assert not graphs and len(model.calls) == 6


class Nested(torch.nn.Module):
    """Takes and gives lists, as Z-Image's transformer does."""

    def forward(self, latents, timestep, texts, return_dict=True):
        found = [part * timestep + text for part, text in zip(latents, texts, strict=True)]
        return {"sample": found} if return_dict else (found,)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lists_go_in_and_come_out(graphs, device):
    model = replayed(Nested(), device)
    with torch.no_grad():
        for value in range(4):
            (latents,), (texts,), (timestep,) = numbers(value, 1), numbers(10, 20), numbers(3)
            (found,) = model(list(latents), timestep, list(texts), return_dict=False)
            assert isinstance(found, list) and [part.item() for part in found] == [3 * value + 10, 23]
    assert len(graphs) == (device == "cuda")


def test_on_a_cpu_a_module_stays_as_it_is():
    model = Nested()
    assert replayed(model, "cpu") is model and "forward" not in vars(model)
