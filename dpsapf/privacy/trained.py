"""Which parameters a run trains, by name and shape, from the public model's files, the run and its selection alone.

Neither the model is built nor an adapter put into it: the names are written down here once more.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dpsapf.experiment.columns import MATRIX, RANK
from dpsapf.experiment.methods import Adapter, method
from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.registries import PACKAGED
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.errors import UserError

Shape = tuple[int, ...]
DENOISERS = ("unet", "transformer")  # folders of it in diffusers' layout


def trained_shapes(run: RunSpec, rank: int, selected: pd.DataFrame, model: ModelRecord) -> dict[str, Shape]:
    """Return the shape of each parameter that a run trains.

    Args:
        run: says what is trained.
        rank: the config's, of adapters whose run names none.
        selected: rows of the run's selection that are trained, with ranks of their own if they have them.
        model: the public model.

    Raises:
        UserError: the model's files are not where they were, or lack a matrix of the selection.
    """
    shapes, trained = denoiser_shapes(model), method(run.method).trained
    if trained in ("adapter", "weights"):
        return _of_matrices(run, rank, selected, shapes, model)
    kept = {
        "unet": lambda name: True,
        "biases": lambda name: name.endswith(".bias"),
        "attention": lambda name: not {"attn1", "attn2"}.isdisjoint(name.split(".")),
    }[trained]
    return {name: shape for name, shape in shapes.items() if kept(name)}


def denoiser_shapes(model: ModelRecord) -> dict[str, Shape]:
    """Read the name and shape of each parameter of a public model's denoiser from the headers of its files.

    Raises:
        UserError: they are not where the model's record says.
    """
    packaged = Path(__file__).parents[1] / "public_models" / model.path.removeprefix(PACKAGED)
    folders = [(packaged if model.path.startswith(PACKAGED) else Path(model.path)) / name for name in DENOISERS]
    files = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    if not files:
        raise UserError(f"{model.name}: path", model.path, "has no denoiser in it: put the public model where its record says")
    shapes: dict[str, Shape] = {}
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: tuple(told["shape"]) for name, told in header.items() if name != "__metadata__"}
    return shapes


def _of_matrices(
    run: RunSpec, rank: int, selected: pd.DataFrame, shapes: dict[str, Shape], model: ModelRecord
) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    own = selected[RANK] if RANK in selected else [run.lora_rank or rank] * len(selected)
    for name, each in zip(selected[MATRIX], own, strict=True):
        if f"{name}.weight" not in shapes:
            raise UserError(f"{model.name}: {name}", None, "is no matrix of the public model: give the run's own model.json")
        shape = shapes[f"{name}.weight"]
        parts = _adapter(run.adapter, shape, int(each)) if run.adapter else [("weight", shape)]
        found |= {f"{name}.{part}": size for part, size in parts}
    return found


def _adapter(adapter: Adapter, shape: Shape, rank: int) -> Iterator[tuple[str, Shape]]:
    """Name the parameters of an adapter on a matrix [out, in] or a convolution [out, in, height, width]."""
    rows, columns, kernel = shape[0], shape[1], shape[2:]
    ones = (1,) * len(kernel)
    if adapter == "loha":
        for part in ("hada_w1", "hada_w2"):
            yield f"{part}_a.default", (rows, rank)
            yield f"{part}_b.default", (rank, math.prod(shape[1:]))
    elif adapter == "lokr":
        yield from _kronecker(rows, columns, kernel, rank)
    else:
        if adapter != "ffa-lora":
            yield "lora_A.default.weight", (rank, columns, *kernel)
        yield "lora_B.default.weight", (rows, rank, *ones)
        if adapter == "dora":
            yield "lora_magnitude_vector.default.weight", (1, rows, *ones) if kernel else (rows,)


def _kronecker(rows: int, columns: int, kernel: Shape, rank: int) -> Iterator[tuple[str, Shape]]:
    """Name the factors of a Kronecker product, the second of which may be a product of low rank itself."""
    (few_rows, many_rows), (few_columns, many_columns) = _factors(rows), _factors(columns)
    yield "lokr_w1.default", (few_rows, few_columns)
    if rank < max(many_rows, many_columns) / 2:
        yield "lokr_w2_a.default", (many_rows, rank)
        yield "lokr_w2_b.default", (rank, many_columns * math.prod(kernel))
    else:
        yield "lokr_w2.default", (many_rows, many_columns, *kernel)


def _factors(size: int) -> tuple[int, int]:
    """Split a size into two factors that are as near as they can be, the smaller first."""
    small = max(factor for factor in range(1, math.isqrt(size) + 1) if size % factor == 0)
    return small, size // small
