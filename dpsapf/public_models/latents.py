"""The encoded training images of one dataset under one model, and the denoising loss on them."""

import functools
import typing
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dpsapf.experiment.methods import Unit
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
        users: person that each image is of, int64 [N], numbered from 0 without a gap; None if images are the units.
    """

    mean: torch.Tensor
    std: torch.Tensor
    labels: torch.Tensor
    prompt_embeddings: torch.Tensor
    null_embedding: torch.Tensor
    users: torch.Tensor | None = None

    @classmethod
    def load(cls, path: Path, unit: Unit = "image") -> "Latents":
        """Read the safetensors file of encode-dataset to the CPU.

        Args:
            path: the file.
            unit: what is protected; with ``image`` it is passed over whose the images are.

        Raises:
            UserError: the unit is ``user``, and the dataset names none.
        """
        arrays = load_file(path)
        if unit == "user" and "users" not in arrays:
            raise UserError("unit", unit, "the dataset names no users: add a CSV of them to its entry (key users), or use image")
        return cls(**{name: value for name, value in arrays.items() if name != "users" or unit == "user"})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the file holds, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.contiguous() for name, value in named.items() if value is not None}

    def __len__(self) -> int:
        """Return N, the number of units: of users if they are told, else of images."""
        return len(self.labels) if self.users is None else len(self._images_of_users[1])

    @property
    def unit(self) -> Unit:
        """What batches are drawn of."""
        return "image" if self.users is None else "user"

    def images_of(self, units: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw one image of each unit, uniformly from its images and independently; an image is its own unit.

        Args:
            units: int64 [R].
            generator: CPU generator of this batch alone.

        Returns:
            Images, int64 [R].
        """
        if self.users is None:
            return units
        order, counts = self._images_of_users
        places = (torch.rand(len(units), generator=generator, dtype=torch.float64) * counts[units]).long()
        return order[(counts.cumsum(0) - counts)[units] + places]

    @functools.cached_property
    def _images_of_users(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in the order of their users, int64 [N], and the number of images of each user, int64 [U]."""
        return self.users.argsort(stable=True), self.users.bincount()


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
    """Draws for a batch: one (latent, timestep, noise) row per unit and multiplicity, unit by unit.

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

    def units(self, positions: torch.Tensor, multiplicity: int, device: str) -> "Pairs":
        """Return all rows of the units at some positions of the batch, int64 [b], on a device."""
        rows = (positions[:, None] * multiplicity + torch.arange(multiplicity)).flatten()
        parts = (self.latents, self.noise, self.timesteps, self.labels)
        return Pairs(*(part[rows].to(device) for part in parts), self.prompt_embeddings.to(device))

    @property
    def embeddings(self) -> torch.Tensor:
        """Prompt embedding of each row, [B K, L, D]."""
        return self.prompt_embeddings[self.labels]


def draw_pairs(latents: Latents, batch: torch.Tensor, multiplicity: int, timesteps: int, generator: torch.Generator) -> Pairs:
    """Draw posterior samples, timesteps and noise for a whole batch, so that micro-batching cannot change them.

    Args:
        latents: encoded images.
        batch: units of the batch, int64 [B].
        multiplicity: K, pairs per unit; each pair of a user is of an image drawn anew, so that however many images a user
            has, at most K of them count.
        timesteps: number of training timesteps of the scheduler.
        generator: CPU generator of this batch alone; not privacy noise, but secret in a release (`secret_generator`).
    """
    rows = latents.images_of(batch.repeat_interleave(multiplicity), generator)
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
