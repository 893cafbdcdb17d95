"""The two things that Private Evolution asks of a public model: images of a prompt, and variations of images."""

import typing
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.stages import Evolve
from dpsapf.public_models.families import load_model
from dpsapf.public_models.families.family import Family
from dpsapf.public_models.precision import in_precision
from dpsapf.sampling.sample import quantise
from dpsapf.support.progress import track
from dpsapf.support.randomness import child_seed, torch_generator
from dpsapf.support.replay import replayed

if typing.TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class ImageApi:
    """A public model that creates images and varies them.

    Every image has its own seed, named by what it is for and its place; so the batch size cannot change it.

    Attributes:
        model: the public model.
        create: its text-to-image pipeline.
        change: its image-to-image pipeline, of the same parts.
        prompts: embeddings of each wording of each class's prompt, [P, K, L, D].
        empty: embedding of the empty prompt, [L, D].
        seed: of the run.
        options: sampler steps, guidance, micro-batch and device.
    """

    model: Family
    create: "DiffusionPipeline"
    change: "DiffusionPipeline"
    prompts: torch.Tensor
    empty: torch.Tensor
    seed: int
    options: Evolve

    def images(self, labels: np.ndarray) -> np.ndarray:
        """Create one image per label (RANDOM_API): uint8 [n, R, R, 3]."""
        return self._batches(labels, ("create",), lambda rows, **given: self.model.generate(self.create, **given))

    def variations(self, images: np.ndarray, labels: np.ndarray, degree: float, *names: str | int) -> np.ndarray:
        """Vary each image once (VARIATION_API): noised to a share of the noise schedule, and denoised.

        Args:
            images: uint8 [n, R, R, 3].
            labels: their classes, int64 [n].
            degree: that share, in (0, 1]; 1: nothing of the image is left.
            names: what the variations are for: other names give others.

        Returns:
            uint8 [n, R, R, 3].
        """

        def varied(rows: range, **given: object) -> np.ndarray:
            return self.model.vary(self.change, images[rows].astype(np.float32) / 255, degree, **given)

        return self._batches(labels, names, varied)

    def _batches(self, labels: np.ndarray, names: tuple[str | int, ...], made: Callable[..., np.ndarray]) -> np.ndarray:
        size, batches = self.options.micro_batch, []
        for start in track(range(0, len(labels), size), "/".join(map(str, names)), "batch"):
            rows = range(start, min(start + size, len(labels)))
            wordings = [child_seed(self.seed, "evolve", *names, row, "wording") % len(self.prompts) for row in rows]
            batch = made(
                rows,
                prompts=self.prompts[wordings, labels[rows]],
                null=self.empty,
                guidance_scale=self.options.guidance_scale,
                steps=self.options.steps,
                generators=[torch_generator(self.seed, "evolve", *names, row) for row in rows],
            )
            batches.append(quantise(batch, self.model.record.resolution, 3))
        return np.concatenate(batches)


def image_api(record: ModelRecord, wordings: list[tuple[str, ...]], seed: int, options: Evolve) -> ImageApi:
    """Build the interfaces of a public model as it is.

    Args:
        record: the model.
        wordings: P wordings of the K classes' prompts.
        seed: of the run.
        options: sampler steps, guidance, micro-batch and device.
    """
    model = load_model(record)
    denoiser = in_precision(model.denoiser(options.device).requires_grad_(False), options.precision)
    create = model.text_to_image(replayed(denoiser, options.device), options.device, options.sampler)
    embeddings = model.embed([*(prompt for prompts in wordings for prompt in prompts), ""], options.device)
    prompts = embeddings[:-1].unflatten(0, (len(wordings), -1))
    return ImageApi(model, create, model.image_to_image(create), prompts, embeddings[-1], seed, options)
