"""How near gradients of the public model's own samples come to those of private images. Outside the guarantee.

``python docs/own_gradients.py --results results/arms-auto --out results/reference/own-gradients.csv`` reads datasets, latents and
``cache/gradients`` of a results folder. Noise is that of the paper's score: energy at C = 1 and sigma_s 5, the top 30 %.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import MeasureGradients
from dpsapf.public_models.families import load_model
from dpsapf.public_models.latents import Latents, draw_batch
from dpsapf.saliency.expected import kept_of_selection, median_norm, read_gradients
from dpsapf.saliency.score import squared_gradient_norms
from dpsapf.saliency.scores import Bounds
from dpsapf.saliency.select import candidates
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record

DATASETS = ("mnist5k", "digits", "oct-mini", "histo-mini")
BOUND, SIGMA, RATIO = 1.0, 5.0, 0.3
PAPER = {"method": "dp-sapf", "level": "matrix", "ratio": RATIO, "score": "energy", "mechanism": "gaussian", "rule": "top"}
RELEASE = Release(name="saliency", noise_multiplier=SIGMA, sensitivity=BOUND**2, sampling_rate=1.0, steps=1)


def main(arguments: list[str] | None = None) -> int:
    """Write one row per dataset."""
    parser = argparse.ArgumentParser(prog="python docs/own_gradients.py", description="gradients of own and of private images")
    parser.add_argument("--results", type=Path, required=True, help="results folder with datasets, latents and gradients")
    parser.add_argument("--public-model", default="public-mini", help="public model")
    parser.add_argument("--out", type=Path, required=True, help="table to write (.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [compared(name, options.public_model, Layout(options.results)) for name in DATASETS]
    frame = pd.DataFrame(rows).round(4)
    print(frame.to_string(index=False))
    frame.to_csv(options.out, index=False)
    return 0


def compared(dataset: str, public_model: str, layout: Layout) -> dict[str, object]:
    """Set norms of own samples beside those of a dataset's training images, and what each foretells of the paper's score."""
    table = candidates(Path(layout.model(public_model, "candidates.csv")), "attention")
    own = read_gradients(Path(layout.gradients(dataset, public_model, "attention")), table)
    private = squared_norms(dataset, public_model, layout, table)
    images = read_record(layout.dataset(dataset, "dataset.json"), DatasetRecord).train
    run = RunSpec(dataset=dataset, public_model=public_model, **PAPER)
    kept = [
        kept_of_selection(found, table, run, RELEASE, images, Bounds(clipping_norm=BOUND, votes=1))[0] for found in (own, private)
    ]
    norms = {"own_median": median_norm(own), "private_median": median_norm(private)}
    return {"dataset": dataset, "images": images, **norms, "kept_by_own": kept[0], "kept_by_private": kept[1]}


def squared_norms(dataset: str, public_model: str, layout: Layout, table: pd.DataFrame) -> np.ndarray:
    """Compute squared gradient norms of all training images, one timestep each, float64 [N, M]. Private."""
    files = [layout.latents(dataset, public_model, name) for name in ("latents.safetensors", "prompts.safetensors")]
    record = layout.model(public_model, "model.json")
    latents = Latents.load(*map(Path, files), Path(record))
    model = load_model(read_record(record, ModelRecord))
    denoiser, objective = model.denoiser("cpu").requires_grad_(False), model.objective()
    draws = torch_generator(0, "own gradients", "private")
    batch = draw_batch(latents, torch.arange(len(latents)), 1, objective.timesteps, draws)
    unused = dict.fromkeys(("dataset", "model", "candidate_table", "out"), Path("unused"))
    options = MeasureGradients(**unused, micro_batch=128)
    return torch.cat(list(squared_gradient_norms(denoiser, objective, batch, table["matrix"].tolist(), options))).double().numpy()


if __name__ == "__main__":
    sys.exit(main())
