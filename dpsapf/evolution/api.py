"""The two things that Private Evolution asks of a public model: images of a prompt, and variations of images."""

import typing
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.stages import Evolve
from dpsapf.public_models.load import assemble, embed_prompts_of, load_unet
from dpsapf.sampling.sample import quantise
from dpsapf.support.progress import track
from dpsapf.support.randomness import child_seed, torch_generator

if typing.TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class ImageApi:
    """A public model that creates images and varies them.

    Every image has its own seed, named by what it is for and its place; so the batch size cannot change it.

    Attributes:
        create: diffusers' text-to-image pipeline.
        change: its image-to-image pipeline, of the same parts.
        prompts: embeddings of each wording of each class's prompt, [P, K, L, D].
        empty: embedding of the empty prompt, [L, D].
        resolution: side of the images [pixels].
        seed: of the run.
        options: sampler steps, guidance, micro-batch and device.
    """

    create: "DiffusionPipeline"
    change: "DiffusionPipeline"
    prompts: torch.Tensor
    empty: torch.Tensor
    resolution: int
    seed: int
    options: Evolve

    def images(self, labels: np.ndarray) -> np.ndarray:
        """Create one image per label (RANDOM_API): uint8 [n, R, R, 3]."""
        return self._batches(self.create, labels, ("create",), lambda rows: {})

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
        return self._batches(
            self.change, labels, names, lambda rows: {"image": images[rows].astype(np.float32) / 255, "strength": degree}
        )

    def _batches(
        self,
        pipeline: "DiffusionPipeline",
        labels: np.ndarray,
        names: tuple[str | int, ...],
        given: Callable[[range], dict[str, typing.Any]],
    ) -> np.ndarray:
        size, made = self.options.micro_batch, []
        for start in track(range(0, len(labels), size), "/".join(map(str, names)), "batch"):
            rows = range(start, min(start + size, len(labels)))
            wordings = [child_seed(self.seed, "evolve", *names, row, "wording") % len(self.prompts) for row in rows]
            with torch.inference_mode():
                batch = pipeline(
                    prompt_embeds=self.prompts[wordings, labels[rows]].to(self.options.device),
                    negative_prompt_embeds=self.empty.expand(len(rows), -1, -1).to(self.options.device),
                    num_inference_steps=self.options.steps,
                    guidance_scale=self.options.guidance_scale,
                    generator=[torch_generator(self.seed, "evolve", *names, row) for row in rows],
                    output_type="np",
                    **given(rows),
                ).images
            made.append(quantise(batch, self.resolution, 3))
        return np.concatenate(made)


def image_api(record: ModelRecord, wordings: list[tuple[str, ...]], seed: int, options: Evolve) -> ImageApi:
    """Build the interfaces of a public model as it is.

    Args:
        record: the model.
        wordings: P wordings of the K classes' prompts.
        seed: of the run.
        options: sampler steps, guidance, micro-batch and device.
    """
    create, change = pipelines(record, options.device)
    embeddings = embed_prompts_of(record, [*(prompt for prompts in wordings for prompt in prompts), ""], options.device)
    prompts = embeddings[:-1].unflatten(0, (len(wordings), -1))
    return ImageApi(create, change, prompts, embeddings[-1], record.resolution, seed, options)


def pipelines(record: ModelRecord, device: str) -> tuple["DiffusionPipeline", "DiffusionPipeline"]:
    """Assemble diffusers' text-to-image and image-to-image pipelines of the same parts; prompts come as embeddings."""
    from diffusers import AutoPipelineForImage2Image

    create = assemble(record, load_unet(record, device).requires_grad_(False), device)
    change = AutoPipelineForImage2Image.from_pipe(create)
    change.set_progress_bar_config(disable=True)
    return create, change
