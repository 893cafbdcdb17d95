"""encode-dataset and embed-prompts: VAE posteriors and prompt embeddings, computed once per dataset and model."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dpsapf.datasets.images import resize
from dpsapf.datasets.prepared import Part, read_part, read_salt
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import EmbedPrompts, EncodeDataset
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family
from dpsapf.public_models.latents import Origin
from dpsapf.support.arrays import Partial
from dpsapf.support.checkpoint import Checkpoint, State
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
    train, vae = read_part(options.archive, "train"), model.vae(options.device)
    partial = _partial(options, dataset, train, posterior(model, vae, train[:1])[0].shape[1:])
    checkpoint = Checkpoint.beside(options.out, settings(options), options.checkpoint_minutes)
    saved = checkpoint.load()
    done = saved[0]["images"] if saved and partial.exists else 0
    if not done:
        partial.create()
    with partial.open() as writer:
        for name in partial.layout.keys() & {"labels", "users"}:
            writer.put(name, 0, getattr(train, name))

        def state() -> State:
            writer.flush()
            return {"images": min(start + options.micro_batch, len(train))}, {}

        starts = track(range(done, len(train), options.micro_batch), "encode", "batch")
        for start in checkpoint.kept(starts, state):
            batch = posterior(model, vae, train[start : start + options.micro_batch])
            for name, values in zip(("mean", "std"), batch, strict=True):
                writer.put(name, start, in_fp16(values, name, options))
    partial.finish(options.out)
    checkpoint.remove()


def _partial(options: EncodeDataset, dataset: DatasetRecord, train: Part, shape: torch.Size) -> Partial:
    count = len(train)
    layout = {"mean": ("F16", (count, *shape)), "std": ("F16", (count, *shape)), "labels": ("I64", (count,))}
    if train.users is not None:
        layout["users"] = ("I64", (count,))
    facts = _origin(dataset, options.model) | {"salt": read_salt(options.archive).hex()}
    return Partial.beside(options.out, layout, facts)


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
def posterior(model: Family, vae: torch.nn.Module, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images, uint8 [b, R, R, 3], at the model's resolution.

    Returns:
        Posterior means and standard deviations [b, C, h, w], shifted and scaled as the denoiser sees them, fp32 on the CPU.
    """
    pixels = torch.from_numpy(resize(images, model.record.resolution)).permute(0, 3, 1, 2)
    encoded = vae.encode(pixels.to(vae.device).float() / 127.5 - 1).latent_dist
    return model.scaled(vae, encoded.mean.cpu(), encoded.std.cpu())


def embed_prompts(options: EmbedPrompts) -> None:
    """Write the embeddings of the dataset's prompts and of the empty one. Nothing private is read: prompts are public."""
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), load_model(read_record(options.model, ModelRecord))
    embeddings = model.embed([*dataset.prompts, ""], options.device)
    with atomic(options.out) as temporary:
        arrays = {"classes": embeddings[:-1].contiguous(), "null": embeddings[-1].contiguous()}
        save_file(arrays, temporary, _origin(dataset, options.model))


def _origin(dataset: DatasetRecord, model: Path) -> dict[str, str]:
    return Origin(dataset.id, sha256(model))._asdict()
