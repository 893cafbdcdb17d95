"""weights.safetensors: trained parameters by their names in the denoiser, and a header that says how they were trained."""

import json
import typing
from pathlib import Path

from dpsapf.experiment.records import WeightsHeader
from dpsapf.support.arrays import open_arrays, writing
from dpsapf.support.checked import parse
from dpsapf.support.errors import UserError
from dpsapf.support.records import as_json

if typing.TYPE_CHECKING:
    import torch

HEADER = "dpsapf"  # the one key of the file's metadata


def write_weights(path: Path, weights: "dict[str, torch.Tensor]", header: WeightsHeader) -> None:
    """Write fp32 parameters of any shape and device, by name, with their header: equal ones give equal bytes.

    Raises:
        ValueError: a parameter is not fp32.
    """
    strange = [name for name, value in weights.items() if str(value.dtype) != "torch.float32"]
    if strange:
        raise ValueError(f"{path}: {strange[0]} is {weights[strange[0]].dtype}, and fp32 is due")
    layout = {name: ("F32", tuple(value.shape)) for name, value in sorted(weights.items())}
    with writing(path, layout, {HEADER: json.dumps(as_json(header), sort_keys=True)}) as writer:
        for name, value in weights.items():
            writer.put(name, 0, value.cpu().numpy())


def read_header(path: Path) -> WeightsHeader:
    """Read how weights were trained; no tensor is read.

    Raises:
        UserError: the file is no safetensors file, is cut off, or has no header of this suite, or more beside it.
    """
    _, metadata = open_arrays(path)
    if set(metadata) != {HEADER}:
        remedy = f"must have the one key {HEADER}, which finetune writes: adapter, rank, alpha; an older version wrote none"
        raise UserError(f"{path}: metadata", sorted(metadata), remedy)
    try:
        told = json.loads(metadata[HEADER])
    except json.JSONDecodeError:
        raise UserError(f"{path}: metadata", metadata[HEADER], "no JSON: restore the file from a copy") from None
    return parse(WeightsHeader, told, f"{path}: metadata")
