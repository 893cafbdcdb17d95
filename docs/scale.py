"""Time and memory of every stage that reads the whole dataset: does memory stay flat as the dataset grows?

``python docs/scale.py --images 20000 300000 --folder /tmp/scale --out results/reference/scale.csv`` draws PNG files of 96 x 96
pixels, prepares and encodes them, and reads them as saliency and fine-tuning do. The VAE is a narrow one with random weights
behind diffusers' own interface, so that the encoder's arithmetic does not hide the reading. Each stage is a process of its
own, whose largest resident size is looked at every half second.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from measure import ROOT, commit, watched
from PIL import Image

from dpsapf.public_models.latents import Latents, draw_batch

SIDE = 96
CLASSES = ("left", "right")
READERS = ("prepare-dataset", "encode-dataset")  # stages that read every image
MICRO_BATCH = 256
SALIENCY_BATCH, TRAINING_BATCH = 50_000, 4_096  # as at paper scale


def main(arguments: list[str] | None = None) -> int:
    """Write one row per number of images and stage."""
    parser = argparse.ArgumentParser(prog="python docs/scale.py", description="time and memory of the stages by number of images")
    parser.add_argument("--images", type=int, nargs="+", default=[20_000], help="images to draw")
    parser.add_argument("--folder", type=Path, required=True, help="where to draw them; 300,000 take 3 GB, and as much again")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, help="table to write (.csv)")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        read_as_stages_do(options.read)
        return 0
    write_vae(options.folder / "vae")
    rows = [row for count in options.images for row in measured(count, options)]
    frame = pd.DataFrame(rows).assign(threads=options.threads, commit=commit(ROOT))
    print(frame.to_string(index=False))
    frame.to_csv(options.out, index=False)
    return 0


def measured(count: int, options: argparse.Namespace) -> list[dict]:
    """Draw images and run the stages on them."""
    folder = options.folder / str(count)
    draw_images(folder / "images", count, options.threads)
    write_registries(folder, options.folder / "vae")
    files = {name: folder / name for name in ("dataset.safetensors", "dataset.json", "model.json", "latents.safetensors")}
    threads = f"--threads {options.threads}"
    common = f"--dataset {files['dataset.json']} --model {files['model.json']}"
    registries = [f"--name {name} --registry {folder}/{name}.yaml" for name in ("drawn", "narrow")]
    stages = {
        "prepare-dataset": f"{registries[0]} --archive {files['dataset.safetensors']} --record {files['dataset.json']} "
        f"--preview {folder}/preview.png {threads}",
        "prepare-public-model": f"{registries[1]} --record {files['model.json']} --candidates {folder}/candidates.csv",
        "embed-prompts": f"{common} --out {folder}/prompts.safetensors",
        "encode-dataset": f"{common} --archive {files['dataset.safetensors']} --out {files['latents.safetensors']} "
        f"--micro-batch {MICRO_BATCH} {threads}",
    }
    timings = [timed(name, [sys.executable, "-m", "dpsapf", name, *words.split()], count) for name, words in stages.items()]
    rows = [row for row in timings if row["stage"] in READERS]
    reading = timed("reading", [sys.executable, __file__, "--folder", str(folder), "--read", str(folder)], count)
    figures = json.loads((folder / "reading.json").read_text())
    return [*rows, *({**reading, "stage": name, **values} for name, values in figures.items())]


def timed(name: str, command: list[str], count: int) -> dict:
    """Run a stage; return its row."""
    status, seconds, peak = watched(command, ROOT)
    if status:
        raise SystemExit(f"{name} ended with status {status}")
    return {"images": count, "stage": name, "seconds": round(seconds, 1), "images_per_second": count / seconds, "peak_mb": peak}


def read_as_stages_do(folder: Path) -> None:
    """Make the rows of a saliency release and of ten steps of DP-SGD, without the model."""
    import time

    latents, figures = Latents.load(folder / "latents.safetensors", folder / "prompts.safetensors"), {}
    for name, expected, steps in (("saliency's rows", SALIENCY_BATCH, 1), ("finetune's rows", TRAINING_BATCH, 10)):
        start, made = time.monotonic(), 0
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            units = torch.rand(len(latents), generator=generator).mul(len(latents)).lt(expected).nonzero().flatten()
            batch = draw_batch(latents, units, 1, 1000, generator)
            for first in range(0, len(batch), MICRO_BATCH):
                made += len(batch.rows(first, first + MICRO_BATCH, "cpu"))
        seconds = time.monotonic() - start
        figures[name] = {"seconds": round(seconds, 1), "images_per_second": made / seconds}
    (folder / "reading.json").write_text(json.dumps(figures))


def draw_images(folder: Path, count: int, threads: int) -> None:
    """Draw PNG files of two classes, a bright spot on the left or on the right, if they are not there yet."""
    if (folder.parent / "drawn").exists():
        return
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(threads) as pool:
        list(pool.map(partial(_draw, folder), range(count), chunksize=1000))
    (folder.parent / "drawn").touch()


def _draw(folder: Path, number: int) -> None:
    generator = np.random.default_rng(number)
    label, (row, column, width) = number % 2, generator.uniform((20, 10, 8), (76, 38, 30))
    y, x = np.ogrid[:SIDE, :SIDE]
    spot = np.exp(-((y - row) ** 2 + (x - column - 48 * label) ** 2) / width**2)
    colours = generator.integers(0, 256, (2, 3))
    pixels = colours[0] + spot[..., None] * (colours[1] - colours[0])
    Image.fromarray(pixels.astype(np.uint8)).save(folder / CLASSES[label] / f"{number:06}.png")


def write_registries(folder: Path, vae: Path) -> None:
    """Write a registry of the images and one of the packaged UNet with the narrow VAE."""
    dataset = {
        "loader": "image-folder",
        "source": str(folder / "images"),
        "licence": "none",
        "classes": list(CLASSES),
        "prompts": [f"a spot on the {name}" for name in CLASSES],
        "resolution": SIDE,
        "channels": 3,
        "validation": 100,
        "test": 100,
    }
    model = {"path": "package:public-mini", "vae": str(vae), "resolution": SIDE, "licence": "MIT"}
    (folder / "drawn.yaml").write_text(yaml.safe_dump({"drawn": dataset}))
    (folder / "narrow.yaml").write_text(yaml.safe_dump({"narrow": model}))


def write_vae(folder: Path) -> None:
    """Write a narrow autoencoder with random weights: 96 x 96 x 3 to 24 x 24 x 4."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    narrow = {"block_out_channels": (2, 2, 2), "layers_per_block": 1, "norm_num_groups": 1, "mid_block_add_attention": False}
    AutoencoderKL(**blocks, **narrow, latent_channels=4).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
