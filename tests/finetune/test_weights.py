import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpsapf.experiment.records import WeightsHeader
from dpsapf.finetune.weights import HEADER, read_header, write_weights
from dpsapf.support.errors import UserError

WEIGHTS = {"a.lora_A": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2)}
HEADERS = [
    WeightsHeader(adapter="lora", lora_rank=3, lora_alpha=0.5, optimizer="sgd", ema_decay=0.25),
    WeightsHeader(adapter=None, learning_rate_schedule="cosine"),
]


@pytest.mark.parametrize("header", HEADERS, ids=["adapter", "whole"])
def test_weights_and_their_header_read_back_the_same(tmp_path, header):
    path = tmp_path / "weights.safetensors"
    write_weights(path, WEIGHTS, header)
    assert read_header(path) == header
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in load_file(path).items())


def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_weights(tmp_path / name, WEIGHTS, HEADERS[0])
    write_weights(tmp_path / "c", WEIGHTS, HEADERS[1])
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third


GOOD = json.loads(HEADERS[0].model_dump_json())


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, r"metadata = \[\]: must have the one key dpsapf"),
        ({"note": "x"}, r"metadata = \['note'\]"),
        ({HEADER: json.dumps(GOOD), "latents": "0.1 0.2"}, r"metadata = \['dpsapf', 'latents'\]"),
        ({HEADER: json.dumps(GOOD | {"row": [1, 2]})}, "metadata: row = .*unknown key"),
        ({HEADER: json.dumps(GOOD | {"lora_rank": 0})}, "metadata: lora_rank = 0: must be at least 1"),
        ({HEADER: json.dumps({"lora_rank": 4})}, "metadata: adapter = None: is required"),
        ({HEADER: "{"}, "metadata = '{': no JSON"),
    ],
)
def test_a_header_is_complete_and_holds_nothing_else(tmp_path, metadata, told):
    save_file(WEIGHTS | {"a.lora_A": torch.ones(2)}, tmp_path / "w", metadata)
    with pytest.raises(UserError, match=told):
        read_header(tmp_path / "w")


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
def test_cut_off_weights_are_named(tmp_path, kept):
    write_weights(tmp_path / "w", WEIGHTS, HEADERS[0])
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(UserError, match="w': (is no readable safetensors file|has .* truncated)"):
        read_header(tmp_path / "w")
