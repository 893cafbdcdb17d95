"""sample: draw synthetic images from an audited run with diffusers' own Stable Diffusion pipeline."""

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
from dpsapf.public_models.latents import load_prompts
from dpsapf.public_models.load import assemble, load_unet
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.progress import track
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record

if typing.TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

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
    pipeline = build_pipeline(ledger, options)
    labels = np.arange(options.count, dtype=np.int64) % len(dataset.classes)
    labels.sort()
    images = draw_images(pipeline, labels, ledger, dataset, options)
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


def build_pipeline(ledger: Ledger, options: Sample) -> "StableDiffusionPipeline":
    """Assemble the public model with the run's trained parameters; prompts come as cached embeddings."""
    record = read_record(options.model, ModelRecord)
    unet = load_unet(record, options.device)
    if options.weights is not None:
        weights = load_file(options.weights, device=options.device)
        _restore(unet, ledger, options, weights)
        _merge(unet)
    unet.requires_grad_(False).eval()
    return assemble(record, unet, options.device)


def _restore(unet: torch.nn.Module, ledger: Ledger, options: Sample, weights: dict[str, torch.Tensor]) -> None:
    selection = pd.read_csv(options.selection)
    rank = ledger.run.adapter_rank(options.lora_rank)
    load_weights(trainable(unet, ledger.run, selection, rank, options.lora_alpha), weights)


def _merge(unet: torch.nn.Module) -> None:
    """Add adapters' updates to the weights that they adapt: the same function with fewer products."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def draw_images(
    pipeline: "StableDiffusionPipeline", labels: np.ndarray, ledger: Ledger, dataset: DatasetRecord, options: Sample
) -> np.ndarray:
    """Sample one image per label; each has its own seed, so the batch size cannot change it.

    Returns:
        uint8 [N, H, W, 3] at the dataset's resolution; the three channels are equal for a grey dataset.
    """
    prompts = load_prompts(options.prompts)
    images = []
    for start in track(range(0, len(labels), options.micro_batch), ledger.run.id, "batch"):
        rows = range(start, min(start + options.micro_batch, len(labels)))
        with torch.inference_mode():
            batch = pipeline(
                prompt_embeds=prompts["classes"][labels[rows]].to(options.device),
                negative_prompt_embeds=prompts["null"].expand(len(rows), -1, -1).to(options.device),
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                generator=[torch_generator(ledger.run.seed, "sample", row) for row in rows],
                output_type="np",
            ).images
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
