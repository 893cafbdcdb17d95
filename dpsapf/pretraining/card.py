"""The public model's card, training log and sample sheet."""

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dpsapf.datasets.images import LabelledImages
from dpsapf.datasets.preview import contact_sheet
from dpsapf.experiment.stages import PretrainPublicModel
from dpsapf.support.files import atomic, sha256, write_text
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import torch_generator

LOG = logging.getLogger(__name__)
SHOWN = (
    *(f"a handwritten digit {digit}" for digit in range(10)),
    "a handwritten capital letter R",
    "a printed small letter g in red on yellow",
    "a blue circle on a yellow background",
    "a green star on a white background",
    "horizontal stripes in black and white",
    "a checkerboard in purple and orange",
    "a photo of a cat",
    "a photo of a flower",
    "a photo of a brick wall",
)
SHOWN_GUIDANCE = 2.0
SHOWN_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class PartLog:
    """Training of one part.

    Attributes:
        steps: steps made.
        seconds: time that they took.
        losses: loss of every hundredth step and of the last.
    """

    steps: int
    seconds: float
    losses: list[float]


def write_card(
    folder: Path, options: PretrainPublicModel, log: dict[str, PartLog], prompts: Sequence[str], seconds: float
) -> None:
    """Write README.md, samples.png and training_log.csv into a saved model's folder.

    Args:
        folder: the model in diffusers layout.
        options: what it was trained with.
        log: training by part, in its order.
        prompts: unique prompts, the empty one first.
        seconds: whole time of training.
    """
    write_samples(folder, options.device)
    rows = [
        f"{part},{min(100 * index, entry.steps)},{loss:.6f}"
        for part, entry in log.items()
        for index, loss in enumerate(entry.losses, start=1)
    ]
    write_text(folder / "training_log.csv", "part,step,loss\n" + "\n".join(rows) + "\n")
    digest = sha256(folder / "unet" / "diffusion_pytorch_model.safetensors")
    write_text(folder / "README.md", card_text(options, log, len(prompts) - 1, seconds, digest))


def write_samples(folder: Path, device: str) -> None:
    """Draw twelve zero-shot samples of each shown prompt from the saved model."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for number, prompt in enumerate(track(SHOWN, "samples", "prompt")):
        generators = [torch_generator(0, "card", number, index) for index in range(12)]
        drawn = pipeline(
            [prompt] * 12,
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=generators,
            output_type="np",
            height=32,
            width=32,
        )
        images.append((drawn.images * 255).round().astype(np.uint8))
    labels = np.repeat(np.arange(len(SHOWN)), 12)
    title = f"public-mini, zero-shot, {SHOWN_STEPS} DDIM steps, guidance {SHOWN_GUIDANCE:g}"
    with atomic(folder / "samples.png") as temporary:
        contact_sheet(LabelledImages(np.concatenate(images), labels), SHOWN, title).save(temporary)


def card_text(options: PretrainPublicModel, log: dict[str, PartLog], prompts: int, seconds: float, digest: str) -> str:
    """Write the model card; every number comes from the training that it describes."""
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    versions = ", ".join(f"{name} {version}" for name, version in provenance()["versions"].items())
    rows = (
        f"| {part} | {entry.steps:,} | {entry.seconds:.0f} | {np.mean(entry.losses[-5:]):.4f} |" for part, entry in log.items()
    )
    training = "\n".join(rows)
    return f"""---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
---
# public-mini

A small text-conditional latent diffusion model in the folder layout of a StableDiffusionPipeline: 32x32 images,
8x8x4 latents, 56 attention projections. It is the public model of the dpsapf demo, where it stands in for Stable
Diffusion. It has seen no sensitive dataset of the suite.

![Zero-shot samples](samples.png)

| | |
| --- | --- |
| images | {options.images:,}, drawn by `dpsapf.pretraining.public_data` with seed {options.seed} |
| prompts | {prompts:,} different ones |
| what they show | digits and letters (fonts of matplotlib), crops of photographs (scikit-image, scikit-learn), shapes, textures |
| batch | {options.batch} |
| training | {seconds:.0f} s on {hardware}, Python {platform.python_version()} |
| libraries | {versions} |
| UNet weights | SHA-256 {digest} |

| part | steps | seconds | loss (mean of the last five logged) |
| --- | --- | --- | --- |
{training}

Retrain it with `dpsapf pretrain-public-model` (`--help` lists the options; `training_log.csv` has the losses).
Use: demonstrations and tests of dpsapf. It knows nothing beyond the categories above.
Licences: weights MIT; DejaVu, STIX and Computer Modern fonts, and the photographs, under those of the packages that ship them.
"""
