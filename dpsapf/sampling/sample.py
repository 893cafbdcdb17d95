"""sample: draw synthetic images from an audited run with diffusers' own pipeline of the public model."""

import logging
import time
import typing

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from dpsapf.datasets.archive import write_archive
from dpsapf.datasets.images import LabelledImages, resize
from dpsapf.datasets.preview import contact_sheet
from dpsapf.experiment.records import DatasetRecord, Ledger, ModelRecord, Timing
from dpsapf.experiment.stages import PublishPopulation, Sample
from dpsapf.finetune.adapters import load_weights, trainable
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family
from dpsapf.public_models.latents import load_prompts
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.progress import track
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record

if typing.TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LOG = logging.getLogger(__name__)


def sample(options: Sample) -> None:
    """Write synthetic images with labels balanced over classes, a contact sheet and what it cost.

    Raises:
        UserError: the weights are not those that the ledger's audit passed.
    """
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    ledger = read_record(options.ledger, Ledger)
    check_weights(ledger, options)
    dataset = read_record(options.dataset, DatasetRecord)
    model = load_model(read_record(options.model, ModelRecord))
    pipeline = build_pipeline(model, ledger, options)
    labels = np.arange(options.count, dtype=np.int64) % len(dataset.classes)
    labels.sort()
    images = draw_images(model, pipeline, labels, ledger, dataset, options)
    write_samples(images, labels, ledger, dataset, options, options.device, start)


def write_samples(
    images: np.ndarray,
    labels: np.ndarray,
    ledger: Ledger,
    dataset: DatasetRecord,
    options: Sample | PublishPopulation,
    device: str,
    start: float,
) -> None:
    """Write images uint8 [N, H, W, 3] with labels int64 [N], their contact sheet, and what they cost since ``start`` [s]."""
    write_archive(options.archive, {"images": images, "labels": labels})
    with atomic(options.contact_sheet) as temporary:
        contact_sheet(LabelledImages(images, labels), dataset.classes, f"synthetic: {ledger.run.id}").save(temporary)
    timing = Timing(
        ledger=sha256(options.ledger),
        samples=sha256(options.archive),
        seconds=time.monotonic() - start,
        peak_memory_mb=peak_memory_mb(device),
    )
    write_record(options.timing, timing)


def check_weights(ledger: Ledger, options: Sample) -> None:
    """Check that the weights are the audited ones.

    Raises:
        UserError: weights are missing, superfluous, or have another digest than the ledger's.
    """
    digest = sha256(options.weights) if options.weights else None
    if digest != ledger.weights_digest:
        raise UserError(
            "--weights", options.weights and str(options.weights), f"the audit passed digest {ledger.weights_digest}: audit again"
        )


def build_pipeline(model: Family, ledger: Ledger, options: Sample) -> "DiffusionPipeline":
    """Assemble the public model with the run's trained parameters; prompts come as cached embeddings."""
    denoiser = model.denoiser(options.device)
    if options.weights is not None:
        weights = load_file(options.weights, device=options.device)
        _restore(denoiser, ledger, options, weights)
        _merge(denoiser)
    denoiser.requires_grad_(False).eval()
    return model.text_to_image(denoiser, options.device, options.sampler)


def _restore(denoiser: torch.nn.Module, ledger: Ledger, options: Sample, weights: dict[str, torch.Tensor]) -> None:
    selection = pd.read_csv(options.selection)
    rank = ledger.run.adapter_rank(options.lora_rank)
    load_weights(trainable(denoiser, ledger.run, selection, rank, options.lora_alpha), weights)


def _merge(denoiser: torch.nn.Module) -> None:
    """Add adapters' updates to the weights that they adapt: the same function with fewer products."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def draw_images(
    model: Family,
    pipeline: "DiffusionPipeline",
    labels: np.ndarray,
    ledger: Ledger,
    dataset: DatasetRecord,
    options: Sample,
) -> np.ndarray:
    """Sample one image per label; each has its own seed, so the batch size cannot change it.

    Returns:
        uint8 [N, H, W, 3] at the dataset's resolution; the three channels are equal for a grey dataset.
    """
    prompts = load_prompts(options.prompts)
    images = []
    for start in track(range(0, len(labels), options.micro_batch), ledger.run.id, "batch"):
        rows = range(start, min(start + options.micro_batch, len(labels)))
        batch = model.generate(
            pipeline,
            prompts["classes"][labels[rows]],
            prompts["null"],
            guidance_scale=options.guidance_scale,
            steps=options.steps,
            generators=[torch_generator(ledger.run.seed, "sample", row) for row in rows],
        )
        images.append(quantise(batch, dataset.resolution, dataset.channels))
    return np.concatenate(images)


def quantise(images: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Turn float images [B, H, W, 3] in [0, 1] to uint8 at ``resolution``, as `fitted` does."""
    return fitted((images * 255).round().astype(np.uint8), resolution, channels)


def fitted(images: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Resize uint8 images [B, H, W, 3] (Lanczos); grey, three times, if ``channels`` is 1."""
    pixels = resize(images, resolution)
    if channels == 1:
        pixels = np.stack([np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in pixels])
    return pixels
