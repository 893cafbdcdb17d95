"""encode-dataset and embed-prompts: VAE posteriors and prompt embeddings, computed once per dataset and model."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.torch import save_file

from dpsapf.datasets.images import resize
from dpsapf.datasets.prepared import Part, read_part, read_salt
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import EmbedPrompts, EncodeDataset
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family
from dpsapf.support.arrays import writing
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.progress import track
from dpsapf.support.records import read_record

ROUNDING = 2.0**-11  # of a normal number in fp16, relative
SMALLEST = 2.0**-25  # rounding of a smaller number, absolute


def encode_dataset(options: EncodeDataset) -> None:
    """Write the VAE's posterior of each training image, in fp16, with labels and users, batch by batch.

    Rounding to fp16 moves an entry by at most 2^-11 of it (2^-25 if it is below 2^-14), far less than the least noise that
    training adds; see docs/datasets.md. The dataset's id and secret salt stand in the file's header, so that its digest says
    nothing to whoever lacks it.

    Raises:
        UserError: the archive is another than the record's, or an entry is beyond fp16.
    """
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), load_model(read_record(options.model, ModelRecord))
    if sha256(options.archive) != dataset.id:
        raise UserError("--archive", str(options.archive), f"is not the archive of {options.dataset}: run prepare-dataset again")
    train = read_part(options.archive, "train")
    batches = posteriors(model, train, options)
    first = next(batches)
    shape = (len(train), *first[0].shape[1:])
    layout = {"mean": ("F16", shape), "std": ("F16", shape), "labels": ("I64", shape[:1])}
    if train.users is not None:
        layout["users"] = ("I64", shape[:1])
    with writing(options.out, layout, {"dataset_id": dataset.id, "salt": read_salt(options.archive).hex()}) as writer:
        writer.put("labels", 0, train.labels)
        if train.users is not None:
            writer.put("users", 0, train.users)
        total = -(-len(train) // options.micro_batch)
        for number, batch in enumerate(track(itertools.chain([first], batches), "encode", "batch", total)):
            for name, values in zip(("mean", "std"), batch, strict=True):
                writer.put(name, number * options.micro_batch, in_fp16(values, name, options))


def in_fp16(values: torch.Tensor, name: str, options: EncodeDataset) -> np.ndarray:
    """Round to fp16.

    Raises:
        UserError: a value is not finite, or too large.
    """
    rounded = values.half()
    if not torch.isfinite(rounded).all():
        raise UserError("--model", str(options.model), f"its VAE gives a {name} of {float(values.abs().max()):.3g}, beyond fp16")
    return rounded.numpy()


@torch.inference_mode()
def posteriors(model: Family, images: Part, options: EncodeDataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Encode images at the model's resolution, a micro-batch at a time.

    Yields:
        Posterior means and standard deviations [b, C, h, w], shifted and scaled as the denoiser sees them, fp32 on the CPU.
    """
    vae = model.vae(options.device)
    for start in range(0, len(images), options.micro_batch):
        pixels = torch.from_numpy(resize(images[start : start + options.micro_batch], model.record.resolution))
        pixels = pixels.permute(0, 3, 1, 2).to(options.device).float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        yield model.scaled(vae, posterior.mean.cpu(), posterior.std.cpu())


def embed_prompts(options: EmbedPrompts) -> None:
    """Write the embeddings of the dataset's prompts and of the empty one. Nothing private is read: prompts are public."""
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), load_model(read_record(options.model, ModelRecord))
    embeddings = model.embed([*dataset.prompts, ""], options.device)
    with atomic(options.out) as temporary:
        save_file({"classes": embeddings[:-1].contiguous(), "null": embeddings[-1].contiguous()}, temporary)
