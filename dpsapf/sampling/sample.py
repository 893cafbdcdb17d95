"""sample: draw synthetic images from an audited run with diffusers' own pipeline of the public model."""

import logging
import typing
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from dpsapf.datasets.archive import write_archive
from dpsapf.datasets.images import LabelledImages, resize
from dpsapf.datasets.preview import contact_sheet
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, Ledger, ModelRecord, Timing
from dpsapf.experiment.stages import PublishPopulation, Sample
from dpsapf.finetune.adapters import load_weights, trainable
from dpsapf.finetune.weights import read_header
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family
from dpsapf.public_models.latents import Origin, check_origin, load_prompts
from dpsapf.public_models.precision import in_precision
from dpsapf.support.arrays import Partial
from dpsapf.support.checkpoint import Checkpoint, State
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.parallel import Processes, processes
from dpsapf.support.progress import track
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record
from dpsapf.support.replay import replayed

if typing.TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LOG = logging.getLogger(__name__)


def sample(options: Sample) -> None:
    """Write synthetic images with labels balanced over classes, a contact sheet and what it cost.

    Raises:
        UserError: the weights are not those that the ledger's audit passed.
    """
    checkpoint = Checkpoint.beside(options.archive, settings(options), options.checkpoint_minutes)
    torch.set_num_threads(options.threads)
    ledger = read_record(options.ledger, Ledger)
    check_weights(ledger, options)
    dataset = read_record(options.dataset, DatasetRecord)
    check_dataset(ledger, dataset)
    check_origin("--prompts", options.prompts, Origin(dataset.id, sha256(options.model)))
    model = load_model(read_record(options.model, ModelRecord))
    labels = np.arange(options.count, dtype=np.int64) % len(dataset.classes)
    labels.sort()
    with processes(options.device) as joined:
        pipeline = build_pipeline(model, ledger, options)
        drawn = Drawing(model, pipeline, labels, ledger, dataset, options, checkpoint)
        images = draw_images(drawn, joined)
        if joined.leads:
            write_samples(images.memory("images"), labels, ledger, dataset, options, options.device, checkpoint.seconds)
            images.path.unlink()
            checkpoint.remove()


@dataclass(frozen=True)
class Drawing:
    """What images are drawn with.

    Attributes:
        model: the public model.
        pipeline: its text-to-image pipeline, with the run's parameters.
        labels: class of each image, int64 [N].
        ledger: of the audited run.
        dataset: the sensitive dataset's record.
        options: of the stage.
        checkpoint: how many images are drawn; nothing in it is private.
    """

    model: Family
    pipeline: "DiffusionPipeline"
    labels: np.ndarray
    ledger: Ledger
    dataset: DatasetRecord
    options: Sample
    checkpoint: Checkpoint


def write_samples(
    images: np.ndarray,
    labels: np.ndarray,
    ledger: Ledger,
    dataset: DatasetRecord,
    options: Sample | PublishPopulation,
    device: str,
    seconds: float,
) -> None:
    """Write images uint8 [N, H, W, 3] with labels int64 [N], their contact sheet, and what they cost."""
    write_archive(options.archive, {"images": images, "labels": labels})
    with atomic(options.contact_sheet) as temporary:
        contact_sheet(LabelledImages(images, labels), dataset.classes, f"synthetic: {ledger.run.id}").save(temporary)
    timing = Timing(
        ledger=sha256(options.ledger),
        samples=sha256(options.archive),
        seconds=seconds,
        peak_memory_mb=peak_memory_mb(device),
    )
    write_record(options.timing, timing)


def check_weights(ledger: Ledger, options: Sample) -> None:
    """Check that weights, selection and model are those of the audited run.

    Raises:
        UserError: one of them is missing, superfluous, or has another digest than the ledger's.
    """
    audited = {"weights": ledger.weights_digest, **{name: ledger.digests.get(name) for name in ("selection", "model")}}
    for name, digest in audited.items():
        path = getattr(options, name)
        found = sha256(path) if path else None
        if found != digest and (digest or name == "weights"):
            raise UserError(f"--{name}", path and str(path), f"the audit passed digest {digest}: audit again")


def check_dataset(ledger: Ledger, dataset: DatasetRecord) -> None:
    """Check that classes and prompts are those of the images that the run was planned for.

    Raises:
        UserError: they are of another dataset.
    """
    if dataset.id != ledger.dataset_id:
        remedy = f"the audited run is of {ledger.run.dataset}, {ledger.dataset_id[:12]}: give that dataset's record"
        raise UserError("--dataset", f"{dataset.name}, {dataset.id[:12]}", remedy)


def build_pipeline(model: Family, ledger: Ledger, options: Sample) -> "DiffusionPipeline":
    """Assemble the public model with the run's trained parameters; prompts come as cached embeddings."""
    denoiser = model.denoiser(options.device)
    if options.weights is not None:
        weights = load_file(options.weights, device=options.device)
        _restore(denoiser, ledger, options, weights)
        merge(denoiser)
    denoiser = in_precision(denoiser.requires_grad_(False).eval(), options.precision)
    return model.text_to_image(replayed(denoiser, options.device), options.device, options.sampler)


def _restore(denoiser: torch.nn.Module, ledger: Ledger, options: Sample, weights: dict[str, torch.Tensor]) -> None:
    selection = pd.read_csv(options.selection)
    header = read_header(options.weights)
    load_weights(trainable(denoiser, ledger.run, selection, header.lora_rank, header.lora_alpha), weights)


def merge(denoiser: torch.nn.Module) -> None:
    """Add adapters' updates to the weights that they adapt: the same function with fewer products."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def draw_images(drawing: Drawing, joined: Processes) -> Partial:
    """Sample one image per label, from where an interrupted run was; each has its own seed, whatever batch it is drawn in.

    Returns:
        ``images`` uint8 [N, H, W, 3], at the dataset's resolution; the three channels are equal for a grey dataset.
    """
    options, labels, side = drawing.options, drawing.labels, drawing.dataset.resolution
    images = Partial.beside(options.archive, {"images": ("U8", (len(labels), side, side, 3))})
    saved, done = drawing.checkpoint.load(), 0
    if saved is not None and images.exists:
        done = saved[0]["images"]
        LOG.info("%s: goes on after image %d of %d", drawing.ledger.run.id, done, len(labels))
    elif joined.leads:
        images.create()
    joined.check_equal(done, "images that a process goes on after")
    prompts = load_prompts(options.prompts)
    starts = joined.rounds(done, len(labels), options.micro_batch)
    with images.open() as writer:

        def state() -> State:
            writer.flush()
            return {"images": min(start + starts.step, len(labels))}, {}

        for start in drawing.checkpoint.kept(track(starts, drawing.ledger.run.id, "batch"), state, joined):
            rows = joined.rows(start, len(labels), options.micro_batch)
            writer.put("images", rows.start, _drawn(drawing, prompts, rows))
    return images


def _drawn(drawing: Drawing, prompts: dict[str, torch.Tensor], rows: range) -> np.ndarray:
    """Sample the images of some rows, uint8 [b, H, W, 3]."""
    options, side = drawing.options, drawing.dataset.resolution
    if not rows:
        return np.empty((0, side, side, 3), np.uint8)
    batch = drawing.model.generate(
        drawing.pipeline,
        prompts["classes"][drawing.labels[rows]],
        prompts["null"],
        guidance_scale=options.guidance_scale,
        steps=options.steps,
        generators=[torch_generator(drawing.ledger.run.seed, "sample", row) for row in rows],
    )
    return quantise(batch, side, drawing.dataset.channels)


def quantise(images: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Turn float images [B, H, W, 3] in [0, 1] to uint8 at ``resolution``, as `fitted` does."""
    return fitted((images * 255).round().astype(np.uint8), resolution, channels)


def fitted(images: np.ndarray, resolution: int, channels: int) -> np.ndarray:
    """Resize uint8 images [B, H, W, 3] (Lanczos); grey, three times, if ``channels`` is 1."""
    pixels = resize(images, resolution)
    if channels == 1:
        pixels = np.stack([np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in pixels])
    return pixels
