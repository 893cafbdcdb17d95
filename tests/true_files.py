"""Files of a run as its stages leave them, small: a public model of 40 matrices, scores, the selection, weights, votes."""

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from dpsapf.experiment.columns import (
    BLOCK,
    CANDIDATES,
    LAYER,
    LORA_PARAMETERS,
    MATRIX,
    PARAMETERS,
    PROJECTION,
    SCORE,
    SELECTED,
)
from dpsapf.experiment.records import WeightsHeader
from dpsapf.experiment.stages import SelectMatrices
from dpsapf.finetune.weights import write_weights
from dpsapf.saliency.select import select_matrices
from dpsapf.support.arrays import writing

MATRICES, ROWS, COLUMNS = 40, 8, 7
SETTINGS = {"lora_rank": 5, "lora_alpha": 8.0}  # with 30 % of the matrices, 900 numbers are trained
NAMES = [f"blocks.{place // 8}.attn1.m{place}.to_q" for place in range(MATRICES)]
GRID = 2.0**-17  # of scores of sensitivity 1
COUNT, SIDE = 6, 8  # images that are published


def write_public(model, table):
    """Write the denoiser's file in the model's folder, and the candidate table."""
    (model / "unet").mkdir(parents=True, exist_ok=True)
    matrices = {f"{name}.weight": torch.zeros(ROWS, COLUMNS) for name in NAMES}
    save_file(matrices, model / "unet" / "diffusion_pytorch_model.safetensors")
    rows = {MATRIX: NAMES, LAYER: [name.removesuffix(".to_q") for name in NAMES], BLOCK: [name[:8] for name in NAMES]}
    sizes = {PROJECTION: "to_q", CANDIDATES: "attention", PARAMETERS: ROWS * COLUMNS, LORA_PARAMETERS: ROWS + COLUMNS}
    table.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows | sizes).to_csv(table, index=False)


def write_scores(path, seed=0):
    """Write noisy scores."""
    scores = 10 * np.random.default_rng(seed).standard_normal(MATRICES).round(2) // GRID * GRID
    pd.DataFrame({MATRIX: NAMES, SCORE: scores}).to_csv(path, index=False)


def select(plan, path, table, scores, out, record):
    """Write selection.csv and selection.json, of scores if the method selects by them."""
    given = scores if plan.run.scored_dataset else None
    select_matrices(SelectMatrices(plan=path, candidate_table=table, scores=given, out=out, record=record, **SETTINGS))


def write_trained(plan, selection, path, seed=0):
    """Write weights; returns how many numbers they are."""
    table, draws = pd.read_csv(selection), torch.Generator().manual_seed(seed)
    shapes = {}
    for name in table.loc[table[SELECTED], MATRIX]:
        if plan.run.adapter:
            shapes[f"{name}.lora_A.default.weight"] = (SETTINGS["lora_rank"], COLUMNS)
            shapes[f"{name}.lora_B.default.weight"] = (ROWS, SETTINGS["lora_rank"])
        else:
            shapes[f"{name}.weight"] = (ROWS, COLUMNS)
    weights = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    write_weights(path, weights, WeightsHeader(adapter=plan.run.adapter, **SETTINGS))
    return sum(value.numel() for value in weights.values())


def write_votes(path, rounds, seed=0):
    """Write votes, and images of two classes; returns how many votes a round has."""
    draws = np.random.default_rng(seed)
    layout = {"votes": ("F32", (rounds, COUNT)), "images": ("U8", (COUNT, SIDE, SIDE, 3)), "labels": ("I64", (COUNT,))}
    with writing(path, layout) as writer:
        writer.put("votes", 0, draws.standard_normal((rounds, COUNT)))
        writer.put("images", 0, draws.integers(0, 256, (COUNT, SIDE, SIDE, 1)).repeat(3, 3))
        writer.put("labels", 0, np.sort(np.arange(COUNT) % 2))
    return COUNT
