"""What every family of public models provides, and the checks that all share."""

import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpsapf.experiment.methods import Sampler
from dpsapf.experiment.records import ModelRecord
from dpsapf.public_models.check import Settings, check_keys, check_settings, check_weights, read_config
from dpsapf.public_models.load import folder_of, load_part
from dpsapf.support.errors import UserError

if typing.TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline

    from dpsapf.public_models.latents import Pairs

Configs = dict[str, dict]  # by part
CONFIG_FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # of the others: config.json


class Objective(ABC):
    """What a family's denoiser learns.

    Attributes:
        timesteps: number of noise levels that are drawn from.
    """

    timesteps: int

    @abstractmethod
    def predictions(self, denoiser: "torch.nn.Module", pairs: "Pairs") -> "torch.Tensor":
        """Return the denoiser's prediction of the target for every row, fp32 [B K, C, h, w]."""

    @abstractmethod
    def targets(self, pairs: "Pairs") -> "torch.Tensor":
        """Return what should be predicted, [B K, C, h, w]."""

    def loss(self, denoiser: "torch.nn.Module", pairs: "Pairs") -> "torch.Tensor":
        """Return the squared error of each row, mean over the latent's entries, without a weight, [B K]."""
        return (self.predictions(denoiser, pairs) - self.targets(pairs)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Family(ABC):
    """A public model of one family. A family is narrow: `check` refuses what it was not written for.

    Attributes:
        record: of the model, which `check` has passed.
        name: of the family.
        pipeline: class of diffusers' pipeline, as model_index.json names it.
        denoiser_part: folder of the denoiser.
        classes: the classes of each part that the family knows.
        settings: what it knows of each part's config.
        keys: what each part's config must say.
    """

    record: ModelRecord
    name: typing.ClassVar[str]
    pipeline: typing.ClassVar[str]
    denoiser_part: typing.ClassVar[str]
    classes: typing.ClassVar[dict[str, tuple[str, ...]]]
    settings: typing.ClassVar[dict[str, Settings]]
    keys: typing.ClassVar[dict[str, tuple[str, ...]]]

    @classmethod
    def check(cls, name: str, path: Path, vae_path: Path, resolution: int) -> None:
        """Refuse what the family does not know, from the folder's configs and file names alone.

        Args:
            name: what errors call the model.
            path: its folder.
            vae_path: folder of its VAE, which may be another model's.
            resolution: side of its images [pixels].

        Raises:
            UserError: names the first part, key or file that is missing or unknown.
        """
        index = read_config(name, path / "model_index.json")
        folders = {part: path / part for part in cls.classes} | {"vae": vae_path}
        configs = {part: read_config(name, folder / CONFIG_FILES.get(part, "config.json")) for part, folder in folders.items()}
        for part, known in cls.classes.items():
            published = [(index.get(part) or [None, None])[1]] if folders[part] == path / part else []
            cls._check_class(name, part, [configs[part].get("_class_name", known[0]), *published], known)
            check_settings(name, part, configs[part], cls.settings.get(part, {}))
            check_keys(name, part, configs[part], cls.keys.get(part, ()))
        cls.check_fit(name, configs, resolution)
        cls.check_tokenizer(name, path / "tokenizer", configs)
        for part in (cls.denoiser_part, "text_encoder", "vae"):
            check_weights(name, folders[part])

    @classmethod
    def _check_class(cls, name: str, part: str, found: list[str | None], known: tuple[str, ...]) -> None:
        strange = [each for each in found if each not in known]
        if strange:
            remedy = (
                f"family {cls.name} knows {', '.join(known)} there: choose another model, or add its family (CONTRIBUTING.md)"
            )
            raise UserError(f"{name}: {part}", strange[0], remedy)

    @classmethod
    @abstractmethod
    def check_fit(cls, name: str, configs: Configs, resolution: int) -> None:
        """Refuse parts that do not fit each other or the resolution."""

    @classmethod
    @abstractmethod
    def check_tokenizer(cls, name: str, folder: Path, configs: Configs) -> None:
        """Refuse a tokenizer without what it needs: some libraries would go on with an empty one."""

    @classmethod
    @abstractmethod
    def candidate_table(cls, path: Path) -> "tuple[pd.DataFrame, int]":
        """List the denoiser's candidate matrices in its own order; weights are not loaded.

        Args:
            path: folder of the model.

        Returns:
            One row per matrix with the columns of `dpsapf.experiment.columns`, and the denoiser's number of parameters.
        """

    @abstractmethod
    def denoiser(self, device: str = "cpu") -> "torch.nn.Module":
        """Load the denoiser: fp32, in evaluation mode."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return what the denoiser was trained for, and is trained for further."""

    @abstractmethod
    def embed(self, prompts: Sequence[str], device: str = "cpu") -> "torch.Tensor":
        """Embed prompts as the family's own pipeline does, fp32 [P, L, D] on the CPU."""

    @abstractmethod
    def text_to_image(self, denoiser: "torch.nn.Module", device: str, sampler: Sampler = "model") -> "DiffusionPipeline":
        """Put a denoiser, changed or not, into the family's pipeline; prompts come as embeddings.

        Args:
            denoiser: of this model.
            device: where it is.
            sampler: ``model`` is the one that the model was published with.

        Raises:
            UserError: the family does not know the sampler.
        """

    @abstractmethod
    def conditions(self, prompts: "torch.Tensor", null: "torch.Tensor | None", guidance_scale: float) -> dict[str, object]:
        """Return the keywords by which the family's pipelines take prompts and guidance.

        Args:
            prompts: embeddings [B, L, D] on the pipeline's device.
            null: of the empty prompt, [L, D]; needed with guidance.
            guidance_scale: w of classifier-free guidance, null + w (prompt - null); 1: none.
        """

    def vae(self, device: str = "cpu") -> "AutoencoderKL":
        """Load the autoencoder from ``vae_path``: fp32, in evaluation mode."""
        from diffusers import AutoencoderKL

        path = folder_of(self.record.vae_path)
        return load_part(AutoencoderKL, path.parent, path.name, device)

    def scaled(self, vae: "AutoencoderKL", mean: "torch.Tensor", std: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Turn the VAE's posterior, mean and standard deviation, into that of the latents that the denoiser sees."""
        shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
        return (mean - shift) * scale, std * scale

    def image_to_image(self, pipeline: "DiffusionPipeline") -> "DiffusionPipeline":
        """Put the parts of a pipeline of `text_to_image` into the family's pipeline that starts from noised images.

        Raises:
            UserError: diffusers as installed has none.
        """
        from diffusers import AutoPipelineForImage2Image

        try:
            changing = AutoPipelineForImage2Image.from_pipe(pipeline)
        except ValueError as error:
            remedy = "has no pipeline from image to image in the installed diffusers: install a newer one"
            raise UserError(f"{self.record.name}: family", self.name, remedy) from error
        changing.set_progress_bar_config(disable=True)
        return changing

    @property
    def size(self) -> dict[str, int]:
        """Height and width of the model's images [pixels]: the resolution that it is trained at."""
        return {"height": self.record.resolution, "width": self.record.resolution}

    @property
    def varied_size(self) -> dict[str, int]:
        """What the pipeline from image to image is told of the size, which is the given images'."""
        return self.size

    def generate(
        self,
        pipeline: "DiffusionPipeline",
        prompts: "torch.Tensor",
        null: "torch.Tensor | None" = None,
        *,
        guidance_scale: float,
        steps: int,
        generators: "list[torch.Generator]",
        output_type: typing.Literal["np", "latent"] = "np",
    ) -> typing.Any:  # noqa: ANN401
        """Sample at the model's resolution.

        Args:
            pipeline: of `text_to_image`.
            prompts: embeddings [B, L, D].
            null: of the empty prompt, [L, D]; needed with guidance.
            guidance_scale: see `conditions`.
            steps: sampler steps.
            generators: one per image, so that an image is the same in any batch.
            output_type: images as floats in [0, 1], [B, H, W, 3], or latents [B, C, h, w] as the denoiser sees them.
        """
        given = {"num_inference_steps": steps, "generator": generators, "output_type": output_type, **self.size}
        return self._run(pipeline, prompts, null, guidance_scale, given)

    def vary(
        self,
        pipeline: "DiffusionPipeline",
        images: "np.ndarray",
        strength: float,
        prompts: "torch.Tensor",
        null: "torch.Tensor",
        *,
        guidance_scale: float,
        steps: int,
        generators: "list[torch.Generator]",
    ) -> "np.ndarray":
        """Noise images to a share of the schedule and denoise them: floats in [0, 1], [B, H, W, 3].

        Args:
            pipeline: of `image_to_image`.
            images: floats in [0, 1], [B, H, W, 3], at the model's resolution.
            strength: that share, in (0, 1]; 1: nothing of an image is left.
            prompts: embeddings [B, L, D].
            null: of the empty prompt, [L, D].
            guidance_scale: see `conditions`.
            steps: sampler steps of the whole schedule.
            generators: one per image.
        """
        given = {"num_inference_steps": steps, "generator": generators, "output_type": "np", **self.varied_size}
        return self._run(pipeline, prompts, null, guidance_scale, given | {"image": images, "strength": strength})

    def _run(
        self,
        pipeline: "DiffusionPipeline",
        prompts: "torch.Tensor",
        null: "torch.Tensor | None",
        guidance_scale: float,
        given: dict[str, object],
    ) -> typing.Any:  # noqa: ANN401
        import torch

        device = pipeline.vae.device
        conditions = self.conditions(prompts.to(device), null if null is None else null.to(device), guidance_scale)
        with torch.inference_mode():
            return pipeline(**given, **conditions).images
