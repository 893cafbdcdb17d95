"""The table of a denoiser's candidate matrices."""

import math
import re
import typing

import pandas as pd

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, LORA_PARAMETERS, MATRIX, PARAMETERS, PROJECTION
from dpsapf.experiment.methods import Candidates

if typing.TYPE_CHECKING:
    import torch

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
AROUND_ATTENTION = ("proj_in", "proj_out")  # of a transformer
FEED_FORWARD = ("net.0.proj", "net.2")  # of a transformer block's ff


def matrix_table(denoiser: "torch.nn.Module", blocks: re.Pattern) -> pd.DataFrame:
    """List a denoiser's weight matrices in its own order.

    Args:
        denoiser: on any device, also ``meta``.
        blocks: matches the block at the start of a matrix' dotted name.

    Returns:
        One row per linear layer or convolution with the columns of `dpsapf.experiment.columns`.
    """
    import torch

    kinds = torch.nn.Linear | torch.nn.Conv2d
    matrices = [(name, module.weight.shape) for name, module in denoiser.named_modules() if isinstance(module, kinds)]
    return pd.DataFrame([_row(name, shape, blocks) for name, shape in matrices])


def _row(name: str, shape: tuple[int, ...], blocks: re.Pattern) -> dict[str, str | int]:
    known = (*PROJECTIONS, *FEED_FORWARD)
    projection = next((end for end in known if name.endswith(f".{end}")), name.rpartition(".")[2])
    layer = name.removesuffix(projection).removesuffix(".") or name
    columns = math.prod(shape[1:])
    return {
        MATRIX: name,
        LAYER: layer,
        BLOCK: blocks.match(name)[0],
        PROJECTION: projection,
        CANDIDATES: _smallest_set(projection),
        PARAMETERS: shape[0] * columns,
        LORA_PARAMETERS: shape[0] + columns,
    }


def _smallest_set(projection: str) -> Candidates:
    if projection in PROJECTIONS:
        return "attention"
    if projection in AROUND_ATTENTION:
        return "attention+proj"
    return "attention+ffn" if projection in FEED_FORWARD else "all-params"
