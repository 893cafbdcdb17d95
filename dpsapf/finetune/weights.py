"""weights.safetensors: trained parameters by their names in the denoiser, and a header that says how they were trained."""

import json
import typing
from pathlib import Path

from dpsapf.experiment.records import WeightsHeader
from dpsapf.support.arrays import open_arrays
from dpsapf.support.checked import parse
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.records import as_json

if typing.TYPE_CHECKING:
    import torch

HEADER = "dpsapf"  # the one key of the file's metadata


def write_weights(path: Path, weights: "dict[str, torch.Tensor]", header: WeightsHeader) -> None:
    """Write parameters of any shape and device, by name, with their header."""
    from safetensors.torch import save_file

    metadata = {HEADER: json.dumps(as_json(header), sort_keys=True)}
    with atomic(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, temporary, metadata)


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
