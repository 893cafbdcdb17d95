"""The encoded training images of one dataset under one model, and the denoising loss on them."""

import typing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel


@dataclass(frozen=True)
class Latents:
    """Posterior of the VAE and prompt embeddings, as encode-dataset wrote them.

    Attributes:
        mean: scaled posterior means [N, C, h, w].
        std: scaled posterior standard deviations [N, C, h, w].
        labels: class of each image, int64 [N].
        prompt_embeddings: [K, L, D], one prompt a class.
        null_embedding: [L, D], the empty prompt.
    """

    mean: torch.Tensor
    std: torch.Tensor
    labels: torch.Tensor
    prompt_embeddings: torch.Tensor
    null_embedding: torch.Tensor

    @classmethod
    def load(cls, path: Path) -> "Latents":
        """Read the safetensors file of encode-dataset to the CPU."""
        return cls(**load_file(path))

    def __len__(self) -> int:
        """Return N, the number of training images."""
        return len(self.labels)


def dataset_id(path: Path) -> str:
    """Read the id of the dataset that latents were encoded from.

    Raises:
        UserError: the file does not say.
    """
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
    if "dataset_id" not in facts:
        raise UserError("--latents", str(path), "does not say of which dataset it is: run encode-dataset again")
    return facts["dataset_id"]


@dataclass(frozen=True)
class Pairs:
    """Draws for a batch: one (latent, timestep, noise) row per image and multiplicity, image by image.

    Attributes:
        latents: [B K, C, h, w]; noise: the same shape.
        timesteps: int64 [B K].
        labels: class of each row, int64 [B K].
        prompt_embeddings: [classes, L, D].
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor
    prompt_embeddings: torch.Tensor

    def __len__(self) -> int:
        """Return B K, the number of rows."""
        return len(self.labels)

    def rows(self, start: int, stop: int, device: str) -> "Pairs":
        """Return a slice of rows on a device."""
        parts = (self.latents, self.noise, self.timesteps, self.labels)
        return Pairs(*(part[start:stop].to(device) for part in parts), self.prompt_embeddings.to(device))

    def images(self, positions: torch.Tensor, multiplicity: int, device: str) -> "Pairs":
        """Return all rows of the images at some positions of the batch, int64 [b], on a device."""
        rows = (positions[:, None] * multiplicity + torch.arange(multiplicity)).flatten()
        parts = (self.latents, self.noise, self.timesteps, self.labels)
        return Pairs(*(part[rows].to(device) for part in parts), self.prompt_embeddings.to(device))

    @property
    def embeddings(self) -> torch.Tensor:
        """Prompt embedding of each row, [B K, L, D]."""
        return self.prompt_embeddings[self.labels]


def draw_pairs(latents: Latents, indices: torch.Tensor, multiplicity: int, timesteps: int, generator: torch.Generator) -> Pairs:
    """Draw posterior samples, timesteps and noise for a whole batch, so that micro-batching cannot change them.

    Args:
        latents: encoded images.
        indices: images of the batch, int64 [B].
        multiplicity: K, pairs per image.
        timesteps: number of training timesteps of the scheduler.
        generator: CPU generator of this batch alone; not privacy noise, but secret in a release (`secret_generator`).
    """
    rows = indices.repeat_interleave(multiplicity)
    mean = latents.mean[rows]
    posterior, noise = (torch.randn(mean.shape, generator=generator) for _ in range(2))
    steps = torch.randint(timesteps, (len(rows),), generator=generator)
    sampled = mean + latents.std[rows] * posterior
    return Pairs(sampled, noise, steps, latents.labels[rows], latents.prompt_embeddings)


def denoising_loss(unet: "UNet2DConditionModel | torch.nn.Module", scheduler: "DDIMScheduler", pairs: Pairs) -> torch.Tensor:
    """Return the usual diffusion loss of each row (Ho et al. 2020, eq. 14), mean over the latent's entries, [B K].

    The target is the noise, or the velocity where the scheduler's ``prediction_type`` says so.
    """
    noisy = scheduler.add_noise(pairs.latents, pairs.noise, pairs.timesteps)
    predicted = unet(noisy, pairs.timesteps, pairs.embeddings, return_dict=False)[0]
    target = pairs.noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(pairs.latents, pairs.noise, pairs.timesteps)
    return (predicted.float() - target).square().flatten(1).mean(1)
