"""encode-dataset: VAE posteriors and prompt embeddings, computed once per dataset and model."""

import logging

import numpy as np
import torch
from safetensors.torch import save_file

from dpsapf.datasets.images import resize
from dpsapf.experiment.records import DatasetRecord, ModelRecord
from dpsapf.experiment.stages import EncodeDataset
from dpsapf.public_models.latents import Latents
from dpsapf.public_models.load import embed_prompts, load_vae
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.progress import track
from dpsapf.support.records import read_record

LOG = logging.getLogger(__name__)


def encode_dataset(options: EncodeDataset) -> None:
    """Write the arrays of `dpsapf.public_models.latents.Latents` for the training split.

    The dataset's id and secret salt stand in the file's header, so that its digest says nothing to whoever lacks it.

    Raises:
        UserError: the archive is another than the record's.
    """
    torch.set_num_threads(options.threads)
    dataset, model = read_record(options.dataset, DatasetRecord), read_record(options.model, ModelRecord)
    if sha256(options.archive) != dataset.id:
        raise UserError("--archive", str(options.archive), f"is not the archive of {options.dataset}: run prepare-dataset again")
    with np.load(options.archive, allow_pickle=False) as archive:
        images, labels, salt = archive["train_images"], archive["train_labels"], archive["salt"]
        users = torch.from_numpy(archive["train_users"]) if dataset.users is not None else None
    mean, std = encode_images(model, images, options)
    embeddings = embed_prompts(model, [*dataset.prompts, ""], options.device)
    latents = Latents(mean, std, torch.from_numpy(labels), embeddings[:-1], embeddings[-1], users)
    with atomic(options.out) as temporary:
        facts = {"dataset_id": dataset.id, "salt": salt.tobytes().hex()}
        save_file(latents.tensors(), temporary, facts)


@torch.inference_mode()
def encode_images(model: ModelRecord, images: np.ndarray, options: EncodeDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode uint8 images [N, H, W, 3] at the model's resolution.

    Returns:
        Posterior means and standard deviations [N, C, h, w], times the VAE's scaling factor, fp32 on the CPU.
    """
    vae = load_vae(model, options.device)
    means, stds = [], []
    for start in track(range(0, len(images), options.micro_batch), "encode", "batch"):
        pixels = torch.from_numpy(resize(images[start : start + options.micro_batch], model.resolution))
        pixels = pixels.permute(0, 3, 1, 2).to(options.device).float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        means.append(posterior.mean.cpu())
        stds.append(posterior.std.cpu())
    scale = vae.config.scaling_factor
    return torch.cat(means) * scale, torch.cat(stds) * scale
