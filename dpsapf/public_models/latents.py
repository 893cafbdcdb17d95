"""The encoded training images of one dataset under one model, and the rows that are drawn of them."""

import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dpsapf.experiment.methods import Unit
from dpsapf.support.arrays import Rows, open_arrays
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.randomness import counted_generator

MAKERS = "encode-dataset and embed-prompts"


@dataclass(frozen=True)
class Latents:
    """Posterior of the VAE, as encode-dataset wrote it, and the prompts' embeddings.

    Attributes:
        mean: scaled posterior means [N, C, h, w], in memory or in the file.
        std: scaled posterior standard deviations [N, C, h, w], likewise.
        labels: class of each image, int64 [N].
        prompt_embeddings: [K, L, D], one prompt a class.
        users: person that each image is of, int64 [N], numbered from 0 without a gap; None if images are the units.
        read: is told of the images, int64 [R], whose posteriors are read.
    """

    mean: torch.Tensor | Rows
    std: torch.Tensor | Rows
    labels: torch.Tensor
    prompt_embeddings: torch.Tensor
    users: torch.Tensor | None = None
    read: Callable[[torch.Tensor], None] | None = None

    @classmethod
    def load(cls, path: Path, prompts: Path, model: Path, unit: Unit = "image") -> "Latents":
        """Open the files of encode-dataset and embed-prompts; posteriors are read when they are asked for.

        Args:
            path: latents.safetensors.
            prompts: prompts.safetensors.
            model: model.json, of the model that both were made with.
            unit: what is protected; with ``image`` it is passed over whose the images are.

        Raises:
            UserError: a file is not what it should be, or of another dataset or model than the others; or the unit is ``user``,
                and the dataset names none.
        """
        arrays, _ = open_arrays(path)
        if not {"mean", "std", "labels"} <= arrays.keys():
            raise UserError("--latents", str(path), "holds no latents: run encode-dataset again")
        if unit == "user" and "users" not in arrays:
            raise UserError("unit", unit, "the dataset names no users: add a CSV of them to its entry (key users), or use image")
        users = torch.from_numpy(arrays["users"][:]) if unit == "user" else None
        embeddings = load_prompts(prompts)["classes"]
        check_origin("--latents", path, Origin(origin(path).dataset_id, sha256(model)))
        check_origin("--prompts", prompts, origin(path))
        return cls(arrays["mean"], arrays["std"], torch.from_numpy(arrays["labels"][:]), embeddings, users)

    def posteriors(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and standard deviations of some images, int64 [R]: fp32 [R, C, h, w] on the CPU."""
        if self.read is not None:
            self.read(images)
        return _rows(self.mean, images), _rows(self.std, images)

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


class Origin(typing.NamedTuple):
    """What latents or prompts were made from: the id of their dataset, and the SHA-256 of their model's model.json."""

    dataset_id: str
    model: str


def origin(path: Path) -> Origin:
    """Read what latents or prompts were made from.

    Raises:
        UserError: the file does not say.
    """
    _, facts = open_arrays(path)
    if not set(Origin._fields) <= facts.keys():
        raise UserError("file", str(path), f"does not say of which dataset and model it is: run {MAKERS} again")
    return Origin(*(facts[name] for name in Origin._fields))


def check_origin(flag: str, path: Path, expected: Origin) -> None:
    """Check what latents or prompts were made from.

    Args:
        flag: the option that gave the file, for errors.
        path: the file.
        expected: what the files beside it are of.

    Raises:
        UserError: it is of another dataset, or was made with another model.
    """
    for name, found, other in zip(("dataset", "model"), origin(path), expected, strict=True):
        if found != other:
            remedy = (
                f"was made with {name} {found[:12]}, the files beside it with {other[:12]}: give files of one, or run {MAKERS}"
            )
            raise UserError(flag, str(path), remedy)


def _rows(stored: torch.Tensor | Rows, images: torch.Tensor) -> torch.Tensor:
    return stored[images] if isinstance(stored, torch.Tensor) else torch.from_numpy(stored[images.numpy()]).float()


def load_prompts(path: Path) -> dict[str, torch.Tensor]:
    """Read embed-prompts' file: ``classes`` [K, L, D], one prompt a class, and ``null`` [L, D], the empty prompt.

    Raises:
        UserError: it holds other arrays.
    """
    arrays = load_file(path)
    if arrays.keys() != {"classes", "null"}:
        raise UserError("--prompts", str(path), "holds no prompts: run embed-prompts again")
    return arrays


class _ByRow:
    """Rows that are taken by a slice, or by the units that they are of."""

    def rows(self, start: int, stop: int, device: str) -> "Pairs":
        """Return a slice of rows on a device."""
        return self._taken(torch.arange(len(self))[start:stop]).to(device)

    def units(self, positions: torch.Tensor, multiplicity: int, device: str) -> "Pairs":
        """Return all rows of the units at some positions of the batch, int64 [b], on a device."""
        return self._taken((positions[:, None] * multiplicity + torch.arange(multiplicity)).flatten()).to(device)


@dataclass(frozen=True)
class Pairs(_ByRow):
    """Rows in memory: one (latent, timestep, noise) per unit and multiplicity, unit by unit.

    Attributes:
        latents: [R, C, h, w]; noise: the same shape.
        timesteps: int64 [R].
        labels: class of each row, int64 [R].
        prompt_embeddings: [classes, L, D].
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor
    prompt_embeddings: torch.Tensor

    def __len__(self) -> int:
        """Return R, the number of rows."""
        return len(self.labels)

    @property
    def embeddings(self) -> torch.Tensor:
        """Prompt embedding of each row, [R, L, D]."""
        return self.prompt_embeddings[self.labels]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All attributes, in the order that they are given in."""
        return self.latents, self.noise, self.timesteps, self.labels, self.prompt_embeddings

    def to(self, device: str) -> "Pairs":
        """Return the same on a device."""
        return Pairs(*(part.to(device) for part in self.tensors))

    def _taken(self, rows: torch.Tensor) -> "Pairs":
        parts = (self.latents, self.noise, self.timesteps, self.labels)
        return Pairs(*(part[rows] for part in parts), self.prompt_embeddings)


@dataclass(frozen=True)
class Batch(_ByRow):
    """The draws for a whole batch, B K rows; latents and noise are made when rows are asked for.

    Each row has a generator of its own (Philox, Salmon et al. 2011, counted by row), so that neither micro-batches nor
    processes can change what is drawn, and memory does not grow with the batch.

    Attributes:
        latents: encoded images.
        images: of each row, int64 [B K].
        timesteps: int64 [B K].
        key: of the rows' generators.
    """

    latents: Latents
    images: torch.Tensor
    timesteps: torch.Tensor
    key: int

    def __len__(self) -> int:
        """Return B K, the number of rows."""
        return len(self.images)

    def _taken(self, rows: torch.Tensor) -> Pairs:
        images = self.images[rows]
        mean, std = self.latents.posteriors(images)
        draws = np.empty((len(rows), 2, *mean.shape[1:]), np.float32)
        for place, row in enumerate(rows.tolist()):
            counted_generator(self.key, row).standard_normal(out=draws[place], dtype=np.float32)
        posterior, noise = torch.from_numpy(draws).unbind(1)
        labels, embeddings = self.latents.labels[images], self.latents.prompt_embeddings
        return Pairs(mean + std * posterior, noise, self.timesteps[rows], labels, embeddings)


def draw_batch(latents: Latents, units: torch.Tensor, multiplicity: int, timesteps: int, generator: torch.Generator) -> Batch:
    """Draw images, timesteps and the key of posterior samples and noise for a whole batch.

    Args:
        latents: encoded images.
        units: units of the batch, int64 [B].
        multiplicity: K, pairs per unit; each pair of a user is of an image drawn anew, so that however many images a user
            has, at most K of them count.
        timesteps: number of training timesteps of the scheduler.
        generator: CPU generator of this batch alone; not privacy noise, but secret in a release (`secret_generator`).
    """
    images = latents.images_of(units.repeat_interleave(multiplicity), generator)
    steps = torch.randint(timesteps, (len(images),), generator=generator)
    high, low = torch.randint(2**63 - 1, (2,), generator=generator).tolist()
    return Batch(latents, images, steps, (high << 64) + low)
